import asyncio
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.agents.echo import AsyncReset, Echo
from trl_ext.agents.actions import ChoiceParser, TextParser
from trl_ext.agents.environment import Environment, as_messages, as_text, begin, from_gymnasium, take_turn
from trl_ext.errors import ActionError, ConfigError, EnvironmentStepError


def turns(environment, *replies, **row):
    async def run():
        messages = await begin(environment, row)
        return messages, [await take_turn(environment, reply) for reply in replies]

    return asyncio.run(run())


@pytest.mark.parametrize("kind", [Echo, AsyncReset])
def test_sync_and_async_environments_play_the_same(kind):
    messages, steps = turns(kind(), "yes", "YES", seed=1)
    assert messages == [{"role": "user", "content": "yes or no?"}]
    assert steps == [
        ("1 times yes", 1.0, False, False, {"success": True}),
        ("2 times yes", 1.0, True, False, {"success": True}),
    ]


def test_the_row_reaches_reset():
    environment = Echo()
    turns(environment, seed=3, answer="x")
    assert environment.row == {"seed": 3, "answer": "x"}


@pytest.mark.parametrize("reply", ["maybe", "refuse"])
def test_what_is_no_action_is_told_and_costs_a_turn_and_the_penalty(reply):
    environment = Echo(max_turns=2, parser=ChoiceParser(["yes", "no", "refuse"], invalid_penalty=0.5))
    _, (first, second) = turns(environment, reply, reply)
    assert first[1:4] == (-0.5, False, False)
    assert first.info["invalid"] == first.observation
    assert second[1:4] == (-0.5, False, True)  # it was the last turn


def test_on_invalid_end_terminates():
    _, (step,) = turns(Echo(parser=ChoiceParser(["yes"], on_invalid="end", invalid_penalty=1)), "maybe")
    assert step[1:4] == (-1, True, False)


def test_on_invalid_fail_raises():
    with pytest.raises(ActionError, match="Reply with one of"):
        turns(Echo(parser=ChoiceParser(["yes"], on_invalid="fail")), "maybe")


class Garbage(Environment):
    parser = TextParser()

    def __init__(self, step, first="go"):
        self.result, self.first = step, first

    def reset(self, **row):
        return self.first

    def step(self, action):
        return self.result


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (None, r"step returned None: must be \(observation, reward"),
        (("x", 1.0, True, {}), "must be"),
        ((1, 1.0, True, False, {}), "observation 1: must be text or a list of chat messages"),
        (([{"content": "x"}], 1.0, True, False, {}), "must be text or a list"),
        (("x", None, True, False, {}), "the reward None: must be a finite number"),
        (("x", math.nan, True, False, {}), "the reward nan"),
        (("x", "much", True, False, {}), "the reward 'much'"),
        (("x", 1.0, True, False, None), "the info None: must be a dict"),
    ],
)
def test_a_step_that_is_none_is_an_error_that_shows_it(step, message):
    with pytest.raises(EnvironmentStepError, match=message):
        turns(Garbage(step), "x")


def test_a_first_observation_that_is_none_is_an_error():
    with pytest.raises(EnvironmentStepError, match="observation None"):
        turns(Garbage(None, first=None))


def test_numbers_of_numpy_become_plain_ones():
    _, (step,) = turns(Garbage(("x", np.float32(0.5), np.bool_(True), np.bool_(False), {})), "x")
    assert [type(part) for part in step] == [str, float, bool, bool, dict]


def test_observations_are_text_or_messages():
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "go"}]
    assert as_messages(messages) == messages
    assert as_text(messages) == "be kind\ngo"
    assert as_text("go") == "go"


def test_half_an_emoji_that_no_tokenizer_takes_is_a_question_mark():
    assert as_messages("a\ud83d") == as_messages([{"role": "user", "content": "a\ud83d"}])
    assert as_text("a\ud83d \U0001f642") == "a? \U0001f642"


def test_calls_go_through_what_the_driver_gives():
    called = []

    async def call(function, *args, **kwargs):
        called.append(function.__name__)
        return function(*args, **kwargs)

    async def run():
        await begin(environment, {}, call)
        await take_turn(environment, "yes", call)

    environment = Echo()
    asyncio.run(run())
    assert called == ["reset", "step"]


class Corridor:
    """As Gymnasium's documentation writes an environment: five cells, the goal on the right."""

    def reset(self, *, seed=None, options=None):
        self.place = (options or {}).get("start", 0)
        self.seed = seed
        return np.int64(self.place), {"seed": seed}

    def step(self, action):
        self.place = max(0, self.place + (1 if action == 1 else -1))
        return (
            np.int64(self.place),
            np.float64(self.place == 4),
            np.bool_(self.place == 4),
            False,
            {"place": self.place},
        )

    def close(self):
        self.place = None


def test_an_environment_of_gymnasium_plugs_in():
    environment = from_gymnasium(
        Corridor(), ChoiceParser({"left": 0, "right": 1}), to_text=lambda place: f"You are at {place}."
    )
    messages, steps = turns(environment, "right", "left", "right", "right", seed=7, options={"start": 2}, prompt="x")
    assert messages[0]["content"] == "You are at 2."
    assert environment.env.seed == 7
    assert [step.observation for step in steps] == [f"You are at {place}." for place in (3, 2, 3, 4)]
    assert steps[-1][1:] == (1.0, True, False, {"place": 4})
    environment.close()
    assert environment.env.place is None


def test_what_has_no_step_is_no_environment_of_gymnasium():
    with pytest.raises(ConfigError, match="has no method 'step'"):
        from_gymnasium(type("Half", (), {"reset": lambda self: None})())


def test_the_environment_of_the_documentation_plays():
    page = (Path(__file__).parents[2] / "docs" / "environments.md").read_text()
    names = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    messages, steps = turns(names["HigherLower"](), "5", "x", "3", seed=3)
    assert messages[0]["content"] == "A number from 0 to 9?"
    assert [step.observation for step in steps][::2] == ["lower", "yes"]
    assert steps[2][1:] == (1.0, True, False, {"success": True})


def test_rows_are_seeds():
    assert Echo().rows(3, seed=5) == [{"seed": 5}, {"seed": 6}, {"seed": 7}]


def test_environments_are_imported_without_torch():
    code = (
        "import sys, trl_ext.agents.environments.email_search, trl_ext.agents.environments.game_2048\n"
        "import trl_ext.agents.environments.grid_world, trl_ext.agents.registry, trl_ext.agents.tool_environment\n"
        "import trl_ext.cli\n"
        "sys.exit(' '.join({'torch', 'trl', 'transformers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
