"""A job that is told to end (SIGTERM) writes a checkpoint first."""

import os
import signal
import threading
from typing import Any

import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.utils import reduce
from transformers import TrainerCallback

logger = get_logger(__name__)


class PreemptionCallback(TrainerCallback):
    """Ends the training, with a checkpoint, after the optimizer step in which any process gets a SIGTERM.

    Our trainers have it in the place of transformers' callback where `enable_jit_checkpoint` is set. That one lets each
    process decide by its own clock, so that two of them stop at different steps and wait for each other, and may save
    between the backward and the optimizer step, from where a run does not go on as it would have.

    A second SIGTERM ends the process at once. `stopped` says whether the training was ended.
    """

    def __init__(self) -> None:
        self.stopped = self._asked = False
        self._original: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stopped = self._asked = False
        if threading.current_thread() is threading.main_thread():  # Python takes no handler from another
            self._original = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: Any) -> None:
        if self._asked:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        self._asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        asked = torch.tensor(int(self._asked), device=PartialState().device)
        if reduce(asked, "sum").item() and state.global_step < state.max_steps:
            logger.warning("SIGTERM: writing checkpoint-%d", state.global_step)
            self.stopped = control.should_training_stop = control.should_save = True
            control.should_evaluate = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._original is not None:
            signal.signal(signal.SIGTERM, self._original)
            self._original = None
