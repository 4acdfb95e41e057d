import json
import math

import pytest

from trl_ext.errors import ConfigError
from trl_ext.rewards import make_reward

LEAF = {"type": "exact_match"}
BAD = [
    ({"type": "weighted_sum", "components": [LEAF, LEAF, {**LEAF, "postprocess": [{"type": "clip", "max": -1}]}]},
     r"components[2].postprocess[0].max = -1.0: must be greater than min (0.0)"),
    ({**LEAF, "weigth": 1}, "weigth: no such option of 'exact_match'; did you mean weight?"),
    ({**LEAF, "weight": math.nan}, "weight = nan: input should be a finite number"),
    ({**LEAF, "weight": "much"}, "weight = 'much': input should be a valid number"),
    ({**LEAF, "normalize": "maybe"}, "normalize = 'maybe': input should be a valid boolean"),
    ({**LEAF, "postprocess": [{"type": "clop"}]}, "postprocess[0] = {'type': 'clop'}: input tag 'clop'"),
    ({**LEAF, "postprocess": [{"type": "clip", "low": 1}]}, "postprocess[0].low: no such option"),
    ({**LEAF, "postprocess": [{"type": "squash", "width": 0}]}, "postprocess[0].width = 0"),
    ({**LEAF, "postprocess": [{"type": "ema_normalize", "decay": 1}]}, "postprocess[0].decay = 1"),
    ({**LEAF, "extract": "regex"}, "extract = 'regex': extract by regex needs 'pattern'"),
    ({**LEAF, "extract": {"type": "regex", "pattern": "("}}, "pattern '(' is malformed"),
    ({**LEAF, "extract": "tag"}, "extract by tag needs 'tag'"),
    ({**LEAF, "on_error": "ignore"}, "on_error = 'ignore': input should be 'raise' or 'none'"),
    ({"type": "weighted_sum"}, "components: must be given"),
    ({"type": "product", "components": []}, "components = []: list should have at least 1 item"),
    ({"type": "weighted_sum", "components": [{"type": "minimum", "components": [{"type": "nope"}]}]},
     "components[0].components[0].type: no reward type 'nope'"),
    ({"type": "conditioned", "reward": LEAF}, "on: must be given"),
    ({"type": "conditioned", "reward": LEAF, "on": {"typ": "x"}}, "on: needs a 'type'"),
    ({"components": [LEAF]}, "spec: needs a 'type'"),
    ([LEAF], "a reward spec must be a JSON object, this is a list"),
    ("{", "reward spec is not JSON"),
    ("missing.json", "reward spec 'missing.json' cannot be read: No such file or directory"),
    ("a\0b", "cannot be read: embedded null byte"),
    ({**LEAF, "target": []}, "target = []: must be the name of a column, or a list of names"),
    ({**LEAF, "target": ["a", 3]}, "target = ['a', 3]: must be"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "message"), BAD)
def test_bad_specs_are_refused_in_one_line_that_names_the_place(spec, message):
    with pytest.raises(ConfigError) as error:
        make_reward(spec)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_text_is_refused_in_one_line(tmp_path):
    path = tmp_path / "reward.json"
    path.write_bytes(b"\xff{}")
    with pytest.raises(ConfigError, match=r"reward.json' cannot be read: 'utf-8' codec can't decode"):
        make_reward(path)


def test_a_dict_a_string_a_file_and_the_source_documents_wrapper_are_the_same(tmp_path):
    spec = {"type": "weighted_sum", "components": [{**LEAF, "weight": 3.0}, {"type": "jaccard", "weight": 1.0}]}
    path = tmp_path / "reward.json"
    path.write_text(json.dumps({"$schema": "schema.json", **spec}))
    sources = [spec, json.dumps(spec), str(path), path, {"REWARD": spec}, json.dumps({"REWARD": spec})]
    scores = [make_reward(source).score("a b", "a c") for source in sources]
    assert scores == [pytest.approx(0.25 / 3)] * 6


def test_every_json_of_the_source_document_is_taken_as_it_stands():
    """Only built, not called: the models that it names come from the Hub."""
    clip = [{"type": "clip", "min": 0.0, "max": 1.0}, {"type": "scale", "mul": 2.0, "add": -1.0}]
    document = {
        "REWARD": {
            "type": "weighted_sum",
            "components": [
                {"type": "sentiment", "weight": 0.3},
                {"type": "perplexity", "weight": 0.3},
                {"type": "cosine_sts", "weight": 0.4, "postprocess": clip},
            ],
            "postprocess": [{"type": "ema_normalize", "decay": 0.99, "eps": 1e-8}],
        }
    }
    assert [part.type for part in make_reward(document).children] == ["sentiment", "perplexity", "cosine_sts"]
    for spec in (
        {"type": "sentiment", "model": "distilbert-base-uncased-finetuned-sst-2-english"},
        {"type": "perplexity", "model": "gpt2"},
        {"type": "bleu", "smooth_method": "exp", "lowercase": True},
        {"type": "rouge_l", "use_stemmer": True, "lowercase": True},
        {"type": "toxicity", "model": "original", "invert": True},
        {"type": "bertscore", "model_type": "microsoft/deberta-xlarge-mnli"},
        {"type": "sts", "model": "all-MiniLM-L6-v2", "device": "cpu"},
    ):
        assert make_reward(spec).type == spec["type"]


def test_types_are_read_in_any_case():
    assert make_reward({"type": "Exact_Match"}).score("a", "a") == 1.0
