"""How tests start two processes, what `accelerate launch` makes of a config, and what processes need beside it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "accelerate_configs"


def on_two_processes(module, *arguments, config=None):
    """Run a module on two processes: by torchrun, or by `accelerate launch` with a config. One that fails is shown."""
    folder = os.path.dirname(sys.executable)
    with socket.socket() as taken:  # a port that was found free might be taken before it is used
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        if config is None:
            launcher = [f"{folder}/torchrun", "--standalone", "--nproc_per_node", "2"]
        else:  # where its port is taken, accelerate starts torchrun in the same way, which binds one of its own
            port = str(taken.getsockname()[1])
            launcher = [f"{folder}/accelerate", "launch", "--config_file", str(config), "--main_process_port", port]
        done = subprocess.run(
            [*launcher, "-m", module, *arguments],
            cwd=ROOT,
            env={**os.environ, "PATH": folder + os.pathsep + os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=600,  # a deadlock is a failure, not a hang
        )
    assert done.returncode == 0, done.stderr[-4000:]


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
