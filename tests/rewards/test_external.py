import json
import math
import pickle
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.rewards.fake_scorers.faults import overlap
from tests.rewards.test_hostile import HOSTILE
from trl_ext.errors import ConfigError, RewardError
from trl_ext.rewards import external, make_reward

TYPES = ["comet", "bleurt"]
GOLD, CLOSE, WRONG, SOURCE = "the cat sat", "the cat sits", "qqq", "die Katze"


@pytest.fixture
def make(fake_python, checkpoint, recorded):
    def make(name, **options):
        return make_reward({"type": name, "python": fake_python, "model": str(checkpoint), **options})

    return make


def score(reward, completions, target, **columns):
    columns = {"prompts": [SOURCE] * len(completions), **columns}
    return reward(completions, target=target, **columns)


@pytest.mark.parametrize("name", TYPES)
def test_scores_are_those_of_the_library(name, make):
    source = SOURCE if name == "comet" else ""
    texts = [GOLD, CLOSE, WRONG, GOLD]
    expected = [overlap(text, GOLD, source) for text in texts]
    reward = make(name)
    assert score(reward, texts, [GOLD] * 4) == pytest.approx(expected, abs=1e-12)
    assert expected[0] > expected[1] > expected[2]
    assert [reward.score(text, GOLD, SOURCE) for text in texts] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", TYPES)
def test_the_best_of_several_references_counts_and_none_without_one(name, make):
    known = overlap(GOLD, GOLD, SOURCE if name == "comet" else "")
    targets = [None, [], [None], "", " \n", [WRONG, GOLD, None, ""], [GOLD]]
    assert score(make(name), [GOLD] * 7, targets) == [None] * 5 + [known] * 2


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("completion", ["", " \n", "\x00", "\u200b", " " * 10_000 + "past the end"])
def test_an_empty_completion_is_below_any_other_and_not_sent(name, completion, make, recorded):
    reward = make(name)
    empty, wrong = score(reward, [completion, WRONG], [GOLD, GOLD])
    assert (empty, wrong) == (-1.0, 0.0)
    assert score(make(name, empty=-3.5), [completion], [GOLD]) == [-3.5]
    assert score(reward, [completion], [None]) == [None]
    assert [call["completions"] for call in recorded("score")] == [[WRONG]]


def test_comet_takes_the_prompt_for_the_source_or_a_column(make):
    texts, sources = ["abc", "abc", "abc"], ["abd", "zzz", ""]
    expected = [overlap("abc", GOLD, "abd"), overlap("abc", GOLD, "zzz"), None]
    assert score(make("comet"), texts, [GOLD] * 3, prompts=sources) == expected
    reward = make("comet", source="german")
    assert score(reward, texts, [GOLD] * 3, german=[*sources[:2], None], other=[1, 2, 3]) == expected
    with pytest.raises(RewardError, match=r"source = 'german': no such column, the batch has \['other'\]"):
        score(reward, texts, [GOLD] * 3, other=[1, 2, 3])


@pytest.mark.parametrize("name", TYPES)
def test_distinct_rows_go_out_in_one_batch(name, make, recorded):
    score(make(name, batch_size=3), [CLOSE, GOLD, CLOSE, GOLD, ""], [GOLD, [GOLD, WRONG, GOLD], GOLD, WRONG, GOLD])
    (call,) = recorded("score")
    assert sorted(call["completions"]) == sorted([CLOSE, GOLD, GOLD])
    assert call["batch_size"] == 3
    assert call.get("gpus", 0) == 0
    assert not call.get("progress_bar")


@pytest.mark.parametrize("name", TYPES)
def test_without_a_row_to_score_nothing_starts(name, make, recorded):
    assert score(make(name), ["", GOLD], [GOLD, None]) == [-1.0, None]
    assert recorded("import") == []


@pytest.mark.parametrize("name", TYPES)
def test_a_large_batch_goes_out_in_parts(name, make, recorded, monkeypatch):
    texts = [f"{'x' * number} {GOLD}" for number in range(10)]
    whole = score(make(name), texts, [GOLD] * 10)
    monkeypatch.setattr(external, "_CHUNK", 4)
    assert score(make(name), texts, [GOLD] * 10) == whole
    assert [len(call["completions"]) for call in recorded("score")] == [10, 4, 4, 2]


@pytest.mark.parametrize("name", TYPES)
def test_what_is_no_finite_number_is_none(name, make):
    scorer = make(name)._scorer
    texts = ["nan", GOLD, "inf", "-inf"]
    sources = {"prompts": [SOURCE] * 4} if name == "comet" else {}
    known = overlap(GOLD, WRONG, SOURCE if name == "comet" else "")
    assert scorer(texts, [WRONG] * 4, **sources) == [None, known, None, None]


@pytest.mark.parametrize("name", TYPES)
def test_hostile_texts_go_through_the_pipe_and_come_back_as_scores(name, make):
    reward = make(name)
    for targets in ([GOLD] * len(HOSTILE), HOSTILE[::-1]):
        scores = score(reward, HOSTILE, targets, prompts=HOSTILE)
        assert all(known is None or math.isfinite(known) for known in scores)
    scores = score(reward, HOSTILE, [GOLD] * len(HOSTILE))
    assert scores[:3] == [-1.0] * 3
    assert None not in scores
    read = "? lone ?"
    assert scores[3] == pytest.approx(overlap(read, GOLD, SOURCE if name == "comet" else ""))


@pytest.mark.parametrize("name", TYPES)
def test_any_text_is_scored_as_it_is_alone(name, make):
    reward = make(name)
    texts = st.lists(st.text(st.characters(codec=None), max_size=60), min_size=1, max_size=4)

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(texts, st.text(max_size=30), st.text(max_size=30))
    def run(completions, target, prompt):
        batch = reward(completions, target=[target] * len(completions), prompts=[prompt] * len(completions))
        assert all(known is None or -1 <= known <= 1.1 for known in batch)
        alone = [reward([text], target=[target], prompts=[prompt])[0] for text in completions]
        assert batch == alone

    run()


@pytest.mark.parametrize("name", TYPES)
def test_of_a_long_text_the_beginning_counts(name, make, recorded):
    score(make(name), ["a" * 1_000_000], ["b" * 1_000_000])
    (call,) = recorded("score")
    assert [len(text) for text in call["completions"]] == [external.MAX_CHARACTERS]


def test_comet_finds_a_folder_a_file_and_a_name(make, checkpoint, recorded):
    file = str(checkpoint / "checkpoints" / "model.ckpt")
    for model in (str(checkpoint), file, "Unbabel/wmt22-comet-da"):
        assert score(make("comet", model=model), [GOLD], [GOLD])[0] > 0
    assert [load["path"] for load in recorded("load")][:2] == [file, file]
    assert recorded("load")[2]["path"].endswith("comet/__init__.py")


def test_bleurt_batches_by_length_where_the_checkpoint_allows_it(make, checkpoint, recorded):
    score(make("bleurt"), [GOLD], [GOLD])
    other = checkpoint.parent / "other"
    other.mkdir()
    (other / "bleurt_config.json").write_text(json.dumps({"dynamic_seq_length": True}))
    score(make("bleurt", model=str(other)), [GOLD], [GOLD])
    assert [load["kind"] for load in recorded("load")] == ["BleurtScorer", "LengthBatchingBleurtScorer"]


def test_defaults_are_the_models_that_the_libraries_recommend(fake_python):
    assert make_reward({"type": "comet", "python": fake_python})._scorer.model == "Unbabel/wmt22-comet-da"
    assert make_reward({"type": "bleurt", "python": fake_python})._scorer.model == "BLEURT-20"


@pytest.mark.parametrize(
    ("name", "model", "reason"),
    [
        ("comet", "no/such", "Model 'no/such' not supported by COMET."),
        ("comet", "/dev", "Invalid checkpoint path: /dev/checkpoints/model.ckpt"),
        ("bleurt", "BLEURT-20", "Could not find BLEURT checkpoint BLEURT-20"),
    ],
)
def test_a_missing_model_is_said_in_one_line(name, model, reason, make):
    with pytest.raises(RewardError) as caught:
        score(make(name, model=model, on_error="none"), [GOLD], [GOLD])
    assert f"ended before the model {model!r} was loaded" in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "package"), [("comet", "unbabel-comet"), ("bleurt", "google-research/bleurt")])
def test_a_missing_package_is_said_with_what_installs_it(name, package, make, bare_python):
    with pytest.raises(RewardError) as caught:
        score(make(name, python=bare_python), [GOLD], [GOLD])
    assert f"No module named '{name}'" in str(caught.value)
    assert re.search(rf"python -m venv {name} && {name}/bin/pip install .*{package}", str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TYPES)
def test_it_pickles_before_and_after_a_batch(name, make):
    reward = make(name)
    first = score(pickle.loads(pickle.dumps(reward)), [CLOSE], [GOLD])
    assert score(reward, [CLOSE], [GOLD]) == first
    assert score(pickle.loads(pickle.dumps(reward)), [CLOSE], [GOLD]) == first
    sources = {"prompts": [SOURCE]} if name == "comet" else {}
    assert pickle.loads(pickle.dumps(reward._scorer))([CLOSE], [GOLD], **sources) == first


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"python": "/no/such/python"}, "python = '/no/such/python': must be the Python interpreter"),
        ({"python": "/etc"}, "python = '/etc': must be the Python interpreter"),
        ({"model": ""}, "model = '': must be"),
        ({"batch_size": 0}, "batch_size = 0: must be at least 1"),
        ({"timeout": 0}, "timeout = 0.0: must be greater than 0"),
        ({"timeout": float("inf")}, "timeout = inf: must be"),
        ({"device": "gpu"}, "device = 'gpu': must be cpu, cuda"),
        ({"empty": float("nan")}, "empty = nan: must be finite"),
        ({"pyhton": "x"}, "did you mean python"),
    ],
)
def test_bad_options_are_refused(name, options, message, fake_python):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        make_reward({"type": name, "python": fake_python, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TYPES)
def test_the_interpreter_must_be_named(name):
    with pytest.raises(ConfigError, match="python: must be given"):
        make_reward({"type": name})


def test_the_interpreter_of_an_environment_is_not_taken_for_the_one_that_it_links_to(
    fake_python, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "near").symlink_to(fake_python.removesuffix("/bin/python"))
    assert make_reward({"type": "comet", "python": "near/bin/python"})._scorer.python == f"{tmp_path}/near/bin/python"
