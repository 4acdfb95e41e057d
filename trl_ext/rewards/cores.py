"""How many processor cores a reward may keep busy."""

import os

from accelerate.utils.environment import get_cpu_distributed_information


def own_cores(most: int) -> int:
    """This process's part of the cores that it may run on, at most `most`: training processes beside it score as well.

    More work at a time than cores would take longer in each piece, and run into limits on time.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    beside: int = get_cpu_distributed_information().local_world_size
    return max(1, min(most, usable // beside))
