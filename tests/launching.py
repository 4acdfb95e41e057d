"""What `accelerate launch` makes of a config, and what processes of a test need beside it."""

import os
from pathlib import Path

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

FOLDER = Path(__file__).parents[1] / "accelerate_configs"


def launched(path, *more):
    """The arguments of `accelerate launch` after it read the config, and the environment it gives the processes."""
    args = launch_command_parser().parse_args(["--config_file", str(path), *more, "script.py"])
    args, defaults, precision = _validate_launch_command(args)
    if args.use_deepspeed:
        fields = [*defaults.deepspeed_config, *(["mixed_precision"] if precision else [])]
        args.deepspeed_fields_from_accelerate_config = ",".join(fields)
        return args, prepare_deepspeed_cmd_env(args)[1]
    return args, prepare_multi_gpu_env(args)


def of_process(environment):
    """What a process has of it: its own, not that of the tests."""
    return {key: value for key, value in environment.items() if os.environ.get(key) != value}


def without_deepspeeds_own_communication() -> None:
    """DeepSpeed would compile its communication in shared memory; gloo does the same."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
