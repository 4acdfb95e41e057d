"""Environments that say random things, and fail as they are told to."""

import asyncio
import random
import time
from typing import Any

from datasets import Dataset

from trl_ext.agents.actions import ActionParser
from trl_ext.agents.environment import Environment, Step

ROWS = Dataset.from_list([{"prompt": "", "seed": seed} for seed in range(256)])


class Anything(ActionParser):
    """Every text is an action, an empty one too."""

    def parse(self, text: str) -> str:
        return text


class Talk(Environment):
    """Says a few random letters in each turn, gives a random reward, and ends when it likes. Its `seed` decides all."""

    parser = Anything()
    ends = 0.3

    def reset(self, **row: Any) -> str:
        self.rng = random.Random(row["seed"])
        return self._text()

    def step(self, action: Any) -> Step:
        letters = sum(character.isalpha() for character in action)
        reward, terminated = round(self.rng.uniform(-1, 1) + 0.1 * letters, 2), self.rng.random() < self.ends
        return Step(
            self._text(), reward, terminated, False, {"success": terminated and reward > 0, "said": len(action)}
        )

    def _text(self) -> str:
        return "".join(self.rng.choices("abc :>", k=self.rng.randint(1, 5)))


class AsyncTalk(Talk):
    """The same, in coroutines."""

    async def reset(self, **row: Any) -> str:  # type: ignore[override]
        await asyncio.sleep(0)
        return super().reset(**row)

    async def step(self, action: Any) -> Step:  # type: ignore[override]
        await asyncio.sleep(0)
        return super().step(action)


class Faulty(Talk):
    """Fails in one of five episodes: raises, hangs or returns garbage, at the reset or in a turn."""

    KINDS = ("raise", "hang", "garbage", "nan", "exit", "reset")

    def reset(self, **row: Any) -> str:
        text = super().reset(**row)
        fails = row["seed"] % 5 == 0
        self.kind = self.KINDS[row["seed"] // 5 % len(self.KINDS)] if fails else None
        if self.kind == "reset":
            raise OSError("no such mailbox")
        return text

    @property
    def hangs(self) -> bool:
        return getattr(self, "kind", None) == "hang"

    def step(self, action: Any) -> Any:
        if self.kind == "raise":
            raise ValueError("broken pipe")
        if self.hangs:
            time.sleep(60)
        if self.kind == "garbage":
            return "nonsense"
        if self.kind == "exit":
            raise SystemExit(1)
        step = super().step(action)
        return step._replace(reward=float("nan")) if self.kind == "nan" else step
