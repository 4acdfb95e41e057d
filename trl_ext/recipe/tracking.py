"""Where the episodes of a run go besides its own files."""

import os
from pathlib import Path

from accelerate import PartialState
from trl import GRPOConfig

from trl_ext.tracking.episodes import EpisodeTracker
from trl_ext.tracking.langfuse_episodes import LangfuseEpisodes
from trl_ext.tracking.wandb_episodes import WandbEpisodes

LANGFUSE_KEYS = ("LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY")


def episode_trackers(training_args: GRPOConfig) -> list[EpisodeTracker]:
    """W&B's tables with `--report_to wandb`, traces in Langfuse where the environment has its keys: the main process's.

    Raises:
        MissingExtraError: the keys are there, and langfuse is not installed.
    """
    trackers: list[EpisodeTracker] = []
    if not PartialState().is_main_process:
        return trackers
    if "wandb" in training_args.report_to:
        trackers.append(WandbEpisodes())
    if all(map(os.environ.get, LANGFUSE_KEYS)):
        trackers.append(LangfuseEpisodes(session=training_args.run_name or Path(str(training_args.output_dir)).name))
    return trackers
