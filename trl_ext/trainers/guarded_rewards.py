"""A reward that raises or hangs on one process ends all of them with a message that names it."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from trl import GRPOTrainer
from trl.trainer.utils import is_async_callable

from trl_ext.errors import RewardError
from trl_ext.trainers.rollouts_config import RolloutsConfig


class GuardedRewardsMixin(GRPOTrainer):
    """`GRPOTrainer` whose processes learn of a reward that fails on one of them.

    TRL gathers the rewards at the end of `_calculate_rewards`. A process whose reward raised would not come there, and
    the others would wait until their collective times out. Here it comes there with a mark in the place of its
    rewards, so that nothing is sent while nothing fails.

    Raises:
        RewardError: on the other processes; the one whose reward raised raises its error, with a note.
    """

    args: RolloutsConfig
    reward_funcs: list[Any]

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._running_rewards: set[str] = set()
        self._failed_reward: str | None = None

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        functions, own_error = self.reward_funcs, None
        names = self.reward_func_names
        self.reward_funcs = [self._watched(f, name) for f, name in zip(functions, names, strict=True)]
        watchdog = self._start_watchdog()
        try:
            rewards: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        except Exception as error:
            if self.accelerator.num_processes == 1:
                raise
            own_error = error
            mark = torch.full((len(prompts), len(functions)), -torch.inf, device=self.accelerator.device)
            rewards = self.accelerator.gather(mark)
        finally:
            self.reward_funcs = functions
            self._running_rewards.clear()
            if watchdog is not None:
                watchdog.cancel()
        if self.accelerator.num_processes > 1 and rewards.isneginf().all(1).any():  # or rewards of -inf, which are real
            self._raise_everywhere(own_error)
        return rewards

    def _raise_everywhere(self, own_error: Exception | None) -> None:
        reward = "a reward" if self._failed_reward is None else f"reward {self._failed_reward!r}"
        message = (
            f"{reward} raised on process {self.accelerator.process_index}: {type(own_error).__name__}: {own_error}"
        )
        messages = gather_object([] if own_error is None else [" ".join(message.split())])
        if own_error is not None:
            raise own_error
        if messages:
            raise RewardError("; ".join(messages))

    def _watched(self, function: Any, name: str) -> Callable[..., Any]:
        """The same function, known to run while it does. TRL tells async functions and modules by what they are."""
        if isinstance(function, nn.Module):
            return function
        if is_async_callable(function):

            async def watched_async(*args: Any, **kwargs: Any) -> Any:
                with self._running(name):
                    return await function(*args, **kwargs)

            return watched_async

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self._running(name):
                return function(*args, **kwargs)

        return watched

    @contextmanager
    def _running(self, name: str) -> Iterator[None]:
        self._running_rewards.add(name)
        try:
            yield
        except Exception as error:
            self._failed_reward = name
            error.add_note(f"(reward {name!r}, process {self.accelerator.process_index})")
            raise
        self._running_rewards.discard(name)

    def _start_watchdog(self) -> threading.Timer | None:
        limit = self.args.reward_timeout
        if limit is None:
            if self.accelerator.num_processes == 1:
                return None
            limit = 0.9 * self.args.ddp_timeout
        watchdog = threading.Timer(limit, self._give_up, [limit])
        watchdog.daemon = True
        watchdog.start()
        return watchdog

    def _give_up(self, limit: float) -> None:
        """End this process, as nothing else can while a reward hangs; the launcher ends the others."""
        process, names = self.accelerator.process_index, " and ".join(map(repr, sorted(self._running_rewards)))
        cause = f"reward {names} has not returned" if names else "another process has not come with its rewards"
        limit_is = "reward_timeout" if self.args.reward_timeout is not None else "0.9 * ddp_timeout; see reward_timeout"
        print(f"error: {cause} after {limit:g} s ({limit_is}) on process {process}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(1)
