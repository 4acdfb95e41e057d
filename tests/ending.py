"""How one of several processes ends."""

import os
import sys

import torch


def end_together() -> None:
    """Leave when all have come here, without tearing anything down: torch's threads abort a process now and then."""
    torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
