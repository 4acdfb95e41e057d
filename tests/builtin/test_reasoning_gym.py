import json

import pytest
import reasoning_gym

from trl_ext.builtin.reasoning_gym import reasoning_gym_prompts
from trl_ext.errors import ConfigError

SMALL = {"min_terms": 2, "max_terms": 2, "max_digits": 1, "min_digits": 1}


@pytest.fixture
def prompts():
    return reasoning_gym_prompts("chain_sum", size=20, seed=3, **SMALL)


def test_prompts_are_chat_and_depend_on_the_seed_alone(prompts):
    assert prompts[0]["prompt"][0]["role"] == "user"
    assert prompts[:] == reasoning_gym_prompts("chain_sum", size=20, seed=3, **SMALL)[:]
    assert prompts[:] != reasoning_gym_prompts("chain_sum", size=20, seed=4, **SMALL)[:]


def test_rows_hold_what_the_scorer_needs(prompts):
    task = reasoning_gym.create_dataset("chain_sum", size=20, seed=3, **SMALL)
    for row, problem in zip(prompts, task, strict=True):
        entry = json.loads(row["entry"])
        assert entry["question"] == problem["question"]
        assert task.score_answer(row["answer"], entry) == 1.0


def test_unknown_tasks_and_options_are_refused_with_the_close_ones():
    with pytest.raises(ConfigError, match="reasoning_gym:chain_sun: no such task; close ones: chain_sum"):
        reasoning_gym_prompts("chain_sun")
    with pytest.raises(ConfigError, match="unexpected keyword argument 'terms'"):
        reasoning_gym_prompts("chain_sum", terms=2)
