"""Episodes of many turns as TRL's `rollout_func`: all of a batch are played together, turn by turn."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from accelerate.utils import gather_object

from trl_ext.agents.batch_rollout import BatchRollout, Recorder, check_at_least_one, show
from trl_ext.agents.environment import Environment
from trl_ext.agents.sampled_episode import SampledEpisode
from trl_ext.agents.sampling import sample
from trl_ext.agents.stepping import Stepper, put_back, settle
from trl_ext.agents.trajectory import Trajectory
from trl_ext.errors import ConfigError


def environment_rollout(
    env_factory: Callable[[], Environment],
    *,
    max_turns: int | None = None,
    max_turn_tokens: int | None = None,
    max_concurrency: int = 64,
    step_timeout: float | None = 60.0,
    max_failures: int | float = 0.5,
    chat: bool | None = None,
    recorder: Recorder | Sequence[Recorder] | None = None,
) -> "EnvironmentRollout":
    """A `rollout_func` for [`~trl.GRPOTrainer`] and every trainer of ours, that plays `env_factory()`'s episodes.

    ```python
    trainer = CISPOTrainer(
        model=model, args=args, train_dataset=dataset,
        rollout_func=environment_rollout(MyEnvironment, max_turns=8),
        reward_funcs=[environment_reward],
    )
    ```

    Each row of the dataset begins an episode: its columns go to `reset(**row)`, what that returns goes after the row's
    prompt. The model's tokens stay as they were sampled; the environment's are tokenised once and have no gradient.
    `max_completion_length` bounds all of an episode's tokens after its opening, and so does the model's context:
    an episode that has no room for its next turn is truncated.

    Reward functions get a column `trajectory`, and `token_rewards`, of which `PPOTrainer` makes per-turn rewards (see
    `environment_reward`). A failed episode has a trajectory with a `failure`, and no token that counts.

    Args:
        env_factory: makes an environment; each is used for one episode at a time, and again unless it failed. One that
            failed is closed at once, the others by the `close()` of what this returns.
        max_turns: of the model, in an episode. None: the environment's own `max_turns`, or 10 if it has none.
        max_turn_tokens: of the model, in a turn. A turn that reaches it is handed to the environment as it is.
        max_concurrency: how many environments work at a time.
        step_timeout: seconds for each call of an environment; then its episode has failed. None: no limit.
        max_failures: how many episodes may fail, before the run ends with a report: an int counts those of the run, a
            float is a share of the newest 100 episodes or of the last batch, if that is larger.
        chat: whether to use the chat template; None: if the tokenizer has one.
        recorder: called with the trajectories of each batch, "train" or "eval", and the process, such as a
            `TrajectoryRecorder`; or several of them.

    Raises:
        ConfigError: an argument is out of range.
    """
    return EnvironmentRollout(
        env_factory, max_turns, max_turn_tokens, max_concurrency, step_timeout, max_failures, chat, recorder
    )


class EnvironmentRollout(BatchRollout):
    """What `environment_rollout` returns."""

    def __init__(
        self,
        env_factory: Callable[[], Environment],
        max_turns: int | None,
        max_turn_tokens: int | None,
        max_concurrency: int,
        step_timeout: float | None,
        max_failures: int | float,
        chat: bool | None,
        recorder: Recorder | Sequence[Recorder] | None,
    ):
        super().__init__(max_turns, max_turn_tokens, max_failures, chat, recorder)
        check_at_least_one(max_concurrency=max_concurrency)
        if not callable(env_factory):
            raise ConfigError(
                f"env_factory = {env_factory!r}: must be an environment's class, or a callable that makes one"
            )
        self.env_factory = env_factory
        self._stepper = Stepper(max_concurrency, step_timeout)
        self._idle: list[Environment] = []

    def close(self) -> None:
        """Close the environments. Those of a later rollout are made anew."""
        while self._idle:
            self._idle.pop().close()

    def _play(self, prompts: list[Any], trainer: Any, bar: Any) -> list[Trajectory]:
        started = time.perf_counter()
        episodes = self._begin(prompts, trainer)
        while self._play_turn(episodes, trainer):
            show(bar, [episode.trajectory for episode in episodes if not episode.playing])
        pad_token, seconds = self._tokenizer(trainer).pad_token_id, time.perf_counter() - started
        for episode in episodes:
            if isinstance(episode.environment, Environment):
                put_back(episode.environment, episode.trajectory.failure, self._idle)
        return [episode.finish(pad_token, seconds) for episode in episodes]

    def _begin(self, prompts: list[Any], trainer: Any) -> list[SampledEpisode]:
        renderer, limits = self._make_renderer(trainer), self._limits(trainer)
        episodes = [
            SampledEpisode({**row, "prompt": prompt}, renderer, limits, self._idle.pop() if self._idle else None)
            for prompt, row in zip(prompts, self._rows(prompts, trainer), strict=True)
        ]
        begun = self._stepper.run([episode.begin(self.env_factory, self._stepper) for episode in episodes])
        for episode, messages in zip(episodes, begun, strict=True):
            settle(episode, messages, episode.open)
        return episodes

    def _play_turn(self, episodes: list[SampledEpisode], trainer: Any) -> bool:
        """Let the model write once for every episode that goes on, and the environments answer. False: none goes on.

        Processes do this in step, with as many rows each: engines that work together (a vLLM server, DeepSpeed ZeRO-3)
        would wait for one another. A row that fills up is dropped.
        """
        active = [episode for episode in episodes if episode.playing]
        rows, limit = _agreed(active, trainer.accelerator.num_processes)
        if rows == 0:
            return False
        filler = [[self._tokenizer(trainer).pad_token_id]] * (rows - len(active))
        ids, logprobs = sample(trainer, [episode.ids for episode in active] + filler, limit)
        ready = [
            episode
            for row, episode in enumerate(active)
            if episode.add(ids[row], None if logprobs is None else logprobs[row])
        ]
        steps = self._stepper.run([episode.step(self._stepper) for episode in ready])
        for episode, step in zip(ready, steps, strict=True):
            settle(episode, step, episode.answer)
        return True


def _agreed(active: list[SampledEpisode], processes: int) -> tuple[int, int]:
    """How many rows the model continues, and by how many tokens at most, on every process.

    No row may pass the context's end, where learned positions end: the others go on with their turn in the next round.
    """
    mine = (
        len(active),
        max((episode.turn_room for episode in active), default=0),
        min((episode.context_left for episode in active), default=10**9),
    )
    rows, rooms, contexts = zip(*(gather_object([mine]) if processes > 1 else [mine]), strict=True)
    return max(rows), min(max(rooms), *contexts)
