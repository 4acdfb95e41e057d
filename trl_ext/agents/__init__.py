"""Agents: environments of many turns, players, their evaluation, and rollouts for TRL's trainers."""
