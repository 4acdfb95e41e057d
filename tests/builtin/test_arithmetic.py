from trl_ext.builtin.arithmetic import (
    MAX_ANSWER_TOKENS,
    PROBLEMS,
    arithmetic_demonstrations,
    arithmetic_prompts,
    exact_answer,
)
from trl_ext.builtin.tiny_model import tiny_tokenizer


def test_every_problem_is_in_exactly_one_part_and_its_answer_is_right():
    train, heldout = arithmetic_prompts()
    rows = [*train, *heldout]
    assert (len(train), len(heldout)) == (240, 60)
    assert {row["prompt"] for row in rows} == {question for question, _ in PROBLEMS}
    assert all(eval(row["prompt"].rstrip("=")) == int(row["answer"]) for row in rows)


def test_half_the_demonstrations_are_wrong_and_none_is_of_a_held_out_problem():
    train, heldout = arithmetic_prompts()
    answers = {row["prompt"]: row["answer"] for row in train}
    demonstrations = arithmetic_demonstrations()
    right = sum(answers[row["prompt"]] == row["completion"] for row in demonstrations) / len(demonstrations)
    assert 0.48 < right < 0.53  # a random answer is right now and then
    assert not set(heldout["prompt"]) & set(demonstrations["prompt"])


def test_demonstrations_depend_on_the_seed_alone():
    assert arithmetic_demonstrations(4, seed=1)[:] == arithmetic_demonstrations(4, seed=1)[:]
    assert arithmetic_demonstrations(4, seed=1)[:] != arithmetic_demonstrations(4, seed=2)[:]


def test_reward_is_1_for_the_answer_alone():
    completions = ["12", " 12\n", "13", "", "12 or 13", "-12"]
    assert exact_answer(completions, answer=["12"] * 6) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_every_answer_fits_the_completion_length():
    tokenizer = tiny_tokenizer()
    assert max(len(tokenizer(answer)["input_ids"]) for _, answer in PROBLEMS) + 1 <= MAX_ANSWER_TOKENS
