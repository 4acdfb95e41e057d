import math
from itertools import pairwise
from pathlib import Path

import pytest
from nltk.translate.meteor_score import single_meteor_score

from tests.rewards.test_reference import CLOSE, GOLD, HOSTILE, WRONG, one, random_texts
from trl_ext.errors import ConfigError, RewardError
from trl_ext.rewards import make_reward, reference
from trl_ext.rewards.meteor import PARTS

# As in WordNet's files: licence, then one synset per line; some words are of two, some have an underscore.
DATA = {
    "noun": [
        "  1 This software and database is being provided to you  ",
        "02958343 06 n 05 car 0 auto 0 automobile 0 machine 6 motorcar 0 001 @ 03791235 n 0000 | a motor vehicle  ",
        "02959942 06 n 03 car 1 railcar 0 railway_car 0 001 @ 04576211 n 0000 | a wheeled vehicle on rails  ",
        "02330245 05 n 01 mouse 0 000 | any of numerous small rodents  ",
    ],
    "verb": ["01835496 38 v 04 travel 0 go 0 move 0 locomote 0 000 02 + 01 00 + 02 00 | change location  "],
    "adj": ["01382086 00 a 02 large 0 big(p) 0 000 | above average in size  "],
    "adv": ["00085811 02 r 0b " + " ".join(f"adverb{number:c} 0" for number in range(97, 108)) + " 000 | eleven  "],
}
IRREGULAR = {"noun": "mice mouse\n", "verb": "went go\ngone go\n"}


class NoWordNet:
    """Of which no word has a synonym."""

    def synsets(self, word):
        return []


@pytest.fixture(scope="session")
def wordnet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wordnet")
    for part, lines in DATA.items():
        (folder / f"data.{part}").write_text("\n".join(lines) + "\n")
    for part, lines in IRREGULAR.items():
        (folder / f"{part}.exc").write_text(lines)
    return str(folder)


def test_gold_scores_1_a_close_text_less_a_wrong_or_empty_one_0_and_no_reference_none():
    scores = make_reward({"type": "meteor"})(
        [GOLD, CLOSE, WRONG, "", " \n", GOLD, GOLD], target=[GOLD] * 5 + [None, [None]]
    )
    assert scores[0] == 1.0
    assert 0.3 < scores[1] < 0.9
    assert scores[2:] == [0.0, 0.0, 0.0, None, None]


@pytest.mark.parametrize("options", [{}, {"alpha": 0.5}, {"beta": 1.0}, {"gamma": 0.2}, {"gamma": 0.0}])
def test_it_is_nltks_meteor_where_words_have_no_synonyms(options):
    texts = [GOLD, CLOSE, WRONG, *(text for text in random_texts(40) if len(text.split()) > 1)]
    pairs = list(pairwise(texts))  # none of the same words, which are the one deviation
    expected = [
        single_meteor_score(
            reference.split_words(target.lower()), reference.split_words(text.lower()), wordnet=NoWordNet(), **options
        )
        for text, target in pairs
    ]
    ours = make_reward({"type": "meteor", **options})([text for text, _ in pairs], target=[t for _, t in pairs])
    assert ours == pytest.approx(expected, abs=1e-12)
    assert len({round(score, 6) for score in ours}) > 20


def test_meteor_has_a_known_value():
    # 4 of 5 and of 6 words (sits ~ sitting by stem), in the chunks "the cat", "sits", "mat"
    precision, recall, penalty = 4 / 5, 4 / 6, 0.5 * (3 / 4) ** 3
    expected = (1 - penalty) * 10 * precision * recall / (recall + 9 * precision)
    assert one({"type": "meteor"}, "the cat sits, my mat", "The cat was sitting on mat!") == pytest.approx(expected)


def test_scattered_words_score_less_than_adjacent_ones():
    target = "one two three four five six"
    assert one({"type": "meteor"}, "six five four three two one", target) < one(
        {"type": "meteor"}, target + " x", target
    )


def test_recall_weighs_more_unless_alpha_says_otherwise():
    long, short = "a b c d e f g h", "a b c d"
    assert one({"type": "meteor"}, long, short) > one({"type": "meteor"}, short, long)
    assert one({"type": "meteor", "alpha": 0.0}, long, short) < one({"type": "meteor", "alpha": 0.0}, short, long)


@pytest.mark.parametrize("text", ["yes", "42", "привет", "今", "YES!"])
def test_the_same_words_score_1_however_few(text):
    assert one({"type": "meteor"}, text, text.lower()) == 1.0


def test_an_empty_answer_is_right_only_where_the_reference_is_empty():
    assert one({"type": "meteor"}, "", "...") == 1.0
    assert one({"type": "meteor"}, "words", "") == 0.0
    assert one({"type": "meteor"}, "", ["words", " "]) == 1.0


def test_the_best_of_several_references_counts():
    assert one({"type": "meteor"}, CLOSE, [WRONG, GOLD, None]) == one({"type": "meteor"}, CLOSE, GOLD)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("the automobile stopped", "the car stopped"),
        ("the car stopped", "the automobiles stopped"),
        ("the railcar stopped", "the car stopped"),
        ("he went home", "he travelled home"),
        ("he travels home", "he gone home"),
        ("the mice ate", "the mouse ate"),
        ("the big cat", "the large cat"),
        ("the adverba cat", "the adverbk cat"),
    ],
)
def test_synonyms_match_only_with_wordnet_and_in_both_directions(wordnet, text, target):
    spec = {"type": "meteor", "wordnet": wordnet}
    assert one(spec, text, target) == one(spec, target, text) == pytest.approx(1 - 0.5 * (1 / 3) ** 3)
    assert one({"type": "meteor"}, text, target) == pytest.approx(1 / 3)


def test_words_of_different_synsets_are_no_synonyms(wordnet):
    spec = {"type": "meteor", "wordnet": wordnet}
    for text, target in [("railcar", "automobile"), ("car", "mouse"), ("railway", "car"), ("this", "software")]:
        assert one(spec, text, target) == 0.0


def test_without_irregular_forms_the_data_files_are_enough(wordnet, tmp_path):
    for part in PARTS:
        (tmp_path / f"data.{part}").write_text(Path(wordnet, f"data.{part}").read_text())
    spec = {"type": "meteor", "wordnet": str(tmp_path)}
    assert one(spec, "the automobile stopped", "the car stopped") > 0.9
    assert one(spec, "mice", "mouse") == 0.0


def test_a_malformed_wordnet_is_an_error(tmp_path):
    for part in PARTS:
        (tmp_path / f"data.{part}").write_text("no synset\n")
    with pytest.raises(RewardError, match="cannot score a batch"):
        one({"type": "meteor", "wordnet": str(tmp_path)}, "a cat", "a dog")


def test_a_batch_scores_as_its_completions_one_at_a_time(wordnet):
    texts, targets = random_texts(12), random_texts(12, seed=1)
    for options in ({}, {"wordnet": wordnet}):
        reward = make_reward({"type": "meteor", **options})
        batch = reward(texts, target=targets)
        assert batch == [reward.score(text, target) for text, target in zip(texts, targets, strict=True)]
        assert reward(texts[::-1], target=targets[::-1]) == batch[::-1]


def test_any_text_gives_a_finite_score_in_the_range(wordnet):
    for options in ({}, {"wordnet": wordnet}):
        reward = make_reward({"type": "meteor", **options})
        for text in HOSTILE:
            scores = reward([text, GOLD, text], target=[GOLD, text, text])
            assert all(math.isfinite(score) and 0 <= score <= 1 for score in scores), text[:10]


def test_long_texts_without_a_word_in_common_are_scored():
    ours, theirs = (" ".join(f"{letter}{number}" for number in range(60_000)) for letter in "ab")
    assert one({"type": "meteor"}, ours, theirs) == 0.0


def test_words_past_the_bound_do_not_count():
    within = " ".join(["word"] * reference.MAX_WORDS)
    assert one({"type": "meteor"}, within + " more" * 1000, within) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, "alpha = 1.5: must be from 0 to 1"),
        ({"alpha": math.nan}, "alpha = nan: must be from 0 to 1"),
        ({"gamma": -0.1}, "gamma = -0.1: must be from 0 to 1"),
        ({"beta": -1}, "beta = -1.0: must be 0 or more"),
        ({"beta": math.inf}, "beta = inf: must be 0 or more, and finite"),
        ({"wordnet": "/nowhere"}, "wordnet = '/nowhere': must be a folder of WordNet's files, but has no data.noun"),
        ({"wordnt": "x"}, "did you mean wordnet"),
    ],
)
def test_a_bad_option_is_refused(options, message):
    with pytest.raises(ConfigError) as refused:
        make_reward({"type": "meteor", **options})
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
