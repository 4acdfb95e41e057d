"""What rollouts of episodes have in common: the trainer's limits and rows going in, TRL's columns coming out."""

import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from accelerate.utils import gather_object
from tqdm import tqdm

from trl_ext.agents.rendering import Renderer
from trl_ext.agents.sampled_episode import Limits, failure_report
from trl_ext.agents.trajectory import Trajectory
from trl_ext.errors import ConfigError, DatasetError, EpisodeFailuresError

Recorder = Callable[[Sequence[Trajectory], str, int], None]

WINDOW = 100  # a share of failures is one of at least this many of the newest episodes, where there are so many


class BatchRollout(ABC):
    """A `rollout_func` that plays an episode for each prompt. `failures` are those of the run so far, on all processes.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        max_turns: int | None,
        max_turn_tokens: int | None,
        max_failures: int | float,
        chat: bool | None,
        recorder: Recorder | Sequence[Recorder] | None,
    ):
        check_at_least_one(max_turns=max_turns, max_turn_tokens=max_turn_tokens)
        if not (max_failures >= 0 if isinstance(max_failures, int) else 0 <= max_failures <= 1):
            raise ConfigError(f"max_failures = {max_failures}: must be a count (int) or a share from 0.0 to 1.0")
        self.max_turns, self.max_turn_tokens = max_turns, max_turn_tokens
        self.max_failures, self.chat = max_failures, chat
        self.recorders = [recorder] if callable(recorder) else list(recorder or ())
        self.failures: list[str] = []
        self._renderer: Renderer | None = None
        self._row_of: dict[str, dict[str, Any]] | None = None
        self._newest: deque[bool] = deque()
        self._batches = self._episodes = 0

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """Play an episode for each prompt. TRL repeats a prompt for each completion of its group."""
        with tqdm(total=len(prompts), desc="episodes", leave=False, disable=trainer.args.disable_tqdm or None) as bar:
            trajectories = self._play(prompts, trainer, bar)
        self._label(trajectories, trainer)
        for recorder in self.recorders:
            split = "train" if trainer.model.training else "eval"
            recorder(trajectories, split, trainer.accelerator.process_index)
        self._count_failures(trajectories)
        logprobs = [trajectory.logprobs for trajectory in trajectories]
        return {
            "prompt_ids": [trajectory.prompt_ids for trajectory in trajectories],
            "completion_ids": [trajectory.completion_ids for trajectory in trajectories],
            "logprobs": None if any(row is None for row in logprobs) else logprobs,
            "env_mask": [t.mask if t.failure is None else [0] * len(t.mask) for t in trajectories],
            "trajectory": trajectories,
            "token_rewards": [trajectory.token_rewards for trajectory in trajectories],
        }

    @abstractmethod
    def _play(self, prompts: list[Any], trainer: Any, bar: Any) -> list[Trajectory]:
        """The episodes of this process's prompts, as they ended."""

    def _failure(self, trajectory: Trajectory) -> str | None:
        """What counts against `max_failures`."""
        return trajectory.failure

    def _make_renderer(self, trainer: Any) -> Renderer:
        if self._renderer is None:
            tokenizer = self._tokenizer(trainer)
            chat = bool(tokenizer.chat_template or trainer.chat_template) if self.chat is None else self.chat
            template = trainer.chat_template, trainer.chat_template_kwargs
            self._renderer = Renderer(tokenizer, chat, trainer.eos_token_ids, *template)
        return self._renderer

    def _limits(self, trainer: Any) -> Limits:
        context = getattr(trainer.model.config.get_text_config(), "max_position_embeddings", None) or 10**9
        return Limits(self.max_turns, self.max_turn_tokens, trainer.max_completion_length, context)

    def _tokenizer(self, trainer: Any) -> Any:
        return getattr(trainer.processing_class, "tokenizer", trainer.processing_class)

    def _rows(self, prompts: list[Any], trainer: Any) -> list[dict[str, Any]]:
        """The dataset's rows that the prompts are of: the trainer's own, or those with that prompt.

        TRL gives a rollout function the prompts only. Our trainers keep the rows (`rollout_rows`); for others they are
        looked up, which needs a prompt of its own for each row.

        Raises:
            DatasetError: the rows cannot be told apart by their prompts.
        """
        rows = getattr(trainer, "rollout_rows", None)
        if rows is not None:
            return list(rows)
        if self._row_of is None:
            self._row_of = _by_prompt(trainer)
        try:
            return [self._row_of[json.dumps(prompt)] for prompt in prompts]
        except KeyError as error:
            raise DatasetError(f"no row of the trainer's datasets has the prompt {error!s:.80}") from None

    def _label(self, trajectories: list[Trajectory], trainer: Any) -> None:
        """Say of each which step and which group it is of: TRL has the rows of a group one after the other."""
        size = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
        first = trainer.accelerator.process_index * len(trajectories)
        for row, trajectory in enumerate(trajectories, first):
            trajectory.step, trajectory.group = trainer.state.global_step, f"{self._batches}.{row // size}"
        self._batches += 1

    def _count_failures(self, trajectories: list[Trajectory]) -> None:
        """End the run if too many episodes failed, on all processes alike.

        Raises:
            EpisodeFailuresError: with the first failures.
        """
        batch = gather_object([self._failure(trajectory) for trajectory in trajectories])
        self._episodes += len(batch)
        self.failures += [failure for failure in batch if failure is not None]
        self._newest = deque([*self._newest, *(failure is not None for failure in batch)], max(WINDOW, len(batch)))
        if isinstance(self.max_failures, int):
            if len(self.failures) > self.max_failures:
                raise EpisodeFailuresError(failure_report(self.failures, self._episodes, str(self.max_failures)))
        elif sum(self._newest) > self.max_failures * len(self._newest):
            newest = self.failures[-sum(self._newest) :]
            raise EpisodeFailuresError(failure_report(newest, len(self._newest), f"{self.max_failures:.0%} of them"))


def check_at_least_one(**values: int | None) -> None:
    """Refuse numbers below 1.

    Raises:
        ConfigError: names the number.
    """
    for name, value in values.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} = {value}: must be at least 1")


def show(bar: Any, over: Sequence[Trajectory]) -> None:
    """Say on the progress bar how many episodes are over, and how well they went."""
    rewards = [trajectory.reward for trajectory in over if trajectory.reward is not None]
    bar.n = len(over)
    mean = f"{sum(rewards) / len(rewards):.3g}" if rewards else "-"
    bar.set_postfix(reward=mean, failed=len(over) - len(rewards))


def _by_prompt(trainer: Any) -> dict[str, dict[str, Any]]:
    """The rows of the trainer's datasets, by their prompts as JSON.

    Raises:
        DatasetError: two rows have the same prompt and other columns, or a dataset is streamed.
    """
    name = type(trainer).__name__
    rows: dict[str, dict[str, Any]] = {}
    for dataset in (trainer.train_dataset, trainer.eval_dataset):
        for split in dataset.values() if isinstance(dataset, dict) else [] if dataset is None else [dataset]:
            if not hasattr(split, "__len__"):
                raise DatasetError(f"a streamed dataset: {name} does not say which row it plays; use CISPOTrainer")
            for row in split:
                if rows.setdefault(json.dumps(row["prompt"]), row) != row:
                    raise DatasetError(
                        f"two rows with the prompt {row['prompt']!r:.60} differ in other columns, and {name} does not "
                        "say which one it plays: make the prompts unique, or use CISPOTrainer or PPOTrainer"
                    )
    return rows
