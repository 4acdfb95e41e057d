"""Small environments for tests."""

import asyncio

from trl_ext.agents.actions import ActionParser, ChoiceParser
from trl_ext.agents.environment import Environment, Step
from trl_ext.agents.players import ScriptedPlayer
from trl_ext.errors import ActionError


class SayIt(ScriptedPlayer):
    """Says what is asked for, or the other thing where the row's seed is odd."""

    def choose(self, episode, rng):
        return "no" if episode.trajectory.row["seed"] % 2 else "yes"


class Echo(Environment):
    """Asks for "yes" `turns_needed` times; a "no" ends it. "yes" pays 1."""

    players = {"half": SayIt}

    def __init__(self, turns_needed: int = 2, max_turns: int | None = 5, parser: ActionParser | None = None):
        self.turns_needed, self.max_turns = turns_needed, max_turns
        self.parser = parser or ChoiceParser(["yes", "no", "refuse"])
        self.yes = 0
        self.closed = False

    def reset(self, **row):
        self.turns = self.yes = 0
        self.row = row
        return "yes or no?"

    def step(self, action):
        if action == "refuse":
            raise ActionError("Not here.")
        self.turns += 1
        self.yes += action == "yes"
        over = action == "no" or self.yes == self.turns_needed
        return Step(
            f"{self.yes} times yes",
            float(action == "yes"),
            over,
            not over and self.out_of_turns,
            {"success": action == "yes"},
        )

    def say(self, word: str) -> str:
        """
        Say a word.

        Args:
            word: The word to say.

        Returns:
            How often yes was said.
        """
        return self.step(word)[0]

    @property
    def tools(self):
        return [self.say]

    def close(self):
        self.closed = True


class AsyncEcho(Echo):
    async def step(self, action):
        await asyncio.sleep(0)
        return super().step(action)

    async def say(self, word: str) -> str:
        """
        Say a word.

        Args:
            word: The word to say.

        Returns:
            How often yes was said.
        """
        return (await self.step(word))[0]


class AsyncReset(AsyncEcho):
    async def reset(self, **row):
        return super().reset(**row)
