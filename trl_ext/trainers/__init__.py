"""Trainers: subclasses of TRL's `GRPOTrainer`."""
