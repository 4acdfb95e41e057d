"""Run by torchrun: the main process serves, a worker plays there, and both processes generate and train."""

import contextlib
import json
import sys
from pathlib import Path

import torch
from accelerate.utils import gather_object

from tests.agents.talk import Faulty, Talk
from tests.ending import end_together
from tests.serving.playing import remote_trainer, serving, workers
from tests.trainers.training import weights
from trl_ext.agents.trajectory import TrajectoryRecorder
from trl_ext.errors import EpisodeFailuresError
from trl_ext.serving.server import in_main_process

job = json.loads(sys.argv[1])
ARGS = {"per_device_train_batch_size": 6, "num_generations": 4, "max_steps": 2, "shuffle_dataset": False}
GREEDY = {"generation_kwargs": {"do_sample": False, "top_p": None, "top_k": None}}


def train(environment, config_options, **rollout):
    main = in_main_process()
    with serving() as server, workers(server, environment) if main else contextlib.nullcontext():
        trainer = remote_trainer(job["path"], server, rollout, config_options=config_options)
        try:
            trainer.train()
        except EpisodeFailuresError as error:
            return trainer, str(error)
        counters = server.desk.ledger.counters
        assert (counters.asked, counters.done) == ((24, 24) if main else (0, 0))
    return trainer, None


trainer, _ = train(Talk, {**ARGS, **GREEDY}, recorder=TrajectoryRecorder(job["folder"], ["jsonl"]))
assert trainer.accelerator.num_processes == 2
of_all = gather_object([weights(trainer.accelerator.unwrap_model(trainer.model))])
_, message = train(Faulty, {**ARGS, "max_steps": 1}, max_failures=1)
messages = gather_object([message])
if trainer.accelerator.is_main_process:
    assert torch.equal(*of_all)
    Path(job["result"]).write_text(json.dumps(messages))
end_together()
