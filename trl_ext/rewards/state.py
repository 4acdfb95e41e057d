"""What rewards remember over a run, in its checkpoints."""

import json
import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from trl_ext.rewards.reward import Reward

FILE_NAME = "reward_state.json"
logger = logging.getLogger(__name__)


class RewardStateCallback(TrainerCallback):
    """Saves the averages of every `ema_normalize` with each checkpoint and restores them on resume.

    Give it the rewards that the trainer has: `callbacks=[RewardStateCallback(reward_funcs)]`. Those not made from a
    spec are passed over. A checkpoint outside of `output_dir` is found where the training arguments name it.
    """

    def __init__(self, rewards: list[Any]):
        self.rewards = [reward for reward in rewards if isinstance(reward, Reward)]

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._path(args, state).write_text(json.dumps([reward.state_dict() for reward in self.rewards]))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0 or not any(reward.state_dict() for reward in self.rewards):
            return
        path, named = self._path(args, state), args.resume_from_checkpoint
        if isinstance(named, str) and Path(named, FILE_NAME).is_file():
            path = Path(named, FILE_NAME)  # of a run elsewhere, that goes on here
        if not path.is_file():
            logger.warning("%s is missing: ema_normalize starts anew", path)
            return
        for reward, saved in zip(self.rewards, json.loads(path.read_text()), strict=True):
            reward.load_state_dict(saved)

    @staticmethod
    def _path(args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / FILE_NAME
