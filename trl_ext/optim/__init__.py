"""Optimizers and learning-rate schedulers by name, out of torch, transformers and bitsandbytes."""

from trl_ext.optim.optimizers import list_optimizers, make_optimizer
from trl_ext.optim.schedulers import list_schedulers, make_optimizers, make_scheduler

__all__ = ["list_optimizers", "list_schedulers", "make_optimizer", "make_optimizers", "make_scheduler"]
