import inspect
import json
import re

import pytest

from tests.rewards.verifying import HOSTILE
from trl_ext.errors import RewardError
from trl_ext.rewards import make_reward, reasoning_gym

ENTRY = {"question": "4 + 3 =", "answer": "7", "metadata": {"source_dataset": "chain_sum"}}


def test_reasoning_gym_scores_by_the_tasks_own_scorer() -> None:
    from reasoning_gym import get_score_answer_fn

    pytest.importorskip("reasoning_gym")
    own = get_score_answer_fn("chain_sum")
    completions = ["7", "<answer>7</answer>", "so <answer>1</answer> <answer> 7 </answer>.", "8", "", "it is 7", "7.0"]
    answers = ["7", "7", "7", "8", "", "it is 7", "7.0"]
    reward = make_reward({"type": "reasoning_gym"})
    scores = reward(completions, entry=[json.dumps(ENTRY)] * 7)
    assert scores == [own(answer, ENTRY) for answer in answers]
    assert scores[:4] == [1.0, 1.0, 1.0, 0.0]
    assert reward(completions, entry=[ENTRY] * 7) == scores
    item = {"entry": json.dumps(ENTRY)}
    assert [reward.score(completion, None, item=item) for completion in completions] == scores


def test_tasks_whose_scorer_runs_the_answer_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    entry = {"answer": "1", "metadata": {"source_dataset": "countdown", "target": 1, "numbers": [1]}}
    attack = "__import__('os').mkdir('broken_out')"
    with pytest.raises(RewardError, match="the scorer of 'countdown' runs completions as Python code"):
        make_reward({"type": "reasoning_gym"})([attack], entry=[entry])
    assert not list(tmp_path.iterdir())
    make_reward({"type": "reasoning_gym", "allow_code": True})([attack], entry=[entry])
    assert (tmp_path / "broken_out").is_dir()  # why they are refused


def test_every_scorer_that_evaluates_is_known() -> None:
    """By its source: a new release of reasoning-gym may bring more."""
    from reasoning_gym.factory import DATASETS

    evaluating = re.compile(r"(?<![\w.])eval\(|parse_expr\(|sympify\(|exec\(")
    found = {name for name, (cls, _) in DATASETS.items() if evaluating.search(inspect.getsource(cls.score_answer))}
    assert found == reasoning_gym.EVALUATING_TASKS


def test_reasoning_gym_does_not_score_a_row_without_entry() -> None:
    assert make_reward({"type": "reasoning_gym"})(["7", "7", "7"], entry=[None, "", ENTRY]) == [None, None, 1.0]


def test_reasoning_gym_survives_hostile_texts() -> None:
    floods = ["<answer>" * 10**5, "<answer>" + "9" * 10**6 + "</answer>"]
    scores = make_reward({"type": "reasoning_gym"})(HOSTILE + floods, entry=[ENTRY] * (len(HOSTILE) + 2))
    assert all(score == 0.0 for score in scores)


@pytest.mark.parametrize(
    "entry", ['{"answer": "7"}', "[1]", '{"answer": "7", "metadata": {"source_dataset": "no_such_task"}}', "{"]
)
def test_reasoning_gym_refuses_an_entry_that_is_no_problem(entry: str) -> None:
    with pytest.raises(RewardError):
        make_reward({"type": "reasoning_gym"})(["7"], entry=[entry])


def test_reasoning_gym_tells_a_malformed_answer_from_a_broken_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def score(answer: str, entry: dict) -> float:
        return float(int(answer) == entry["metadata"]["sum"])

    monkeypatch.setattr(reasoning_gym, "_task_scorer", lambda task: score)
    whole = {**ENTRY, "metadata": {"source_dataset": "chain_sum", "sum": 7}}
    reward = make_reward({"type": "reasoning_gym"})
    assert reward(["7", "x"], entry=[whole, whole]) == [1.0, 0.0]
    with pytest.raises(RewardError, match="chain_sum"):
        reward(["x"], entry=[ENTRY])
