import json

import pytest

from trl_ext.builtin.reasoning_gym import reasoning_gym_prompts, reasoning_gym_score
from trl_ext.errors import ConfigError

SMALL = {"min_terms": 2, "max_terms": 2, "max_digits": 1, "min_digits": 1}


@pytest.fixture
def prompts():
    return reasoning_gym_prompts("chain_sum", size=20, seed=3, **SMALL)


def test_prompts_are_chat_and_depend_on_the_seed_alone(prompts):
    assert prompts[0]["prompt"][0]["role"] == "user"
    assert prompts[:] == reasoning_gym_prompts("chain_sum", size=20, seed=3, **SMALL)[:]
    assert prompts[:] != reasoning_gym_prompts("chain_sum", size=20, seed=4, **SMALL)[:]


def test_gold_wrong_and_empty_as_text_as_chat_and_in_tags(prompts):
    row = prompts[0]
    gold = row["answer"]
    completions = [gold, [{"role": "assistant", "content": gold}], f"so <answer>{gold}</answer>", "no idea", ""]
    scores = reasoning_gym_score(completions, entry=[row["entry"]] * 5, prompts=[row["prompt"]] * 5)
    assert scores == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_the_score_is_the_tasks_own(prompts):
    import reasoning_gym

    task = reasoning_gym.create_dataset("chain_sum", size=20, seed=3, **SMALL)
    for row, problem in zip(prompts, task, strict=True):
        assert json.loads(row["entry"])["question"] == problem["question"]
        text = f"it is {problem['answer']}"
        assert reasoning_gym_score([text], entry=[row["entry"]]) == [task.score_answer(text, problem)]


def test_unknown_tasks_and_options_are_refused_with_the_close_ones():
    with pytest.raises(ConfigError, match="reasoning_gym:chain_sun: no such task; close ones: chain_sum"):
        reasoning_gym_prompts("chain_sun")
    with pytest.raises(ConfigError, match="unexpected keyword argument 'terms'"):
        reasoning_gym_prompts("chain_sum", terms=2)
