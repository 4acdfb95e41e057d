import pytest
from spellchecker import SpellChecker

from trl_ext.errors import ConfigError
from trl_ext.rewards import make_reward
from trl_ext.rewards.style import readability, syllables

HOSTILE = ["", "  \n", "\x00", "\ud800", "a" * 1_000_000, "ab " * 300_000, "." * 1_000_000 + "x", "a." * 500_000]
HOSTILE += ["'" * 1_000_000, "a'" * 500_000, "مرحبا بالعالم", "🙂" * 50, "\u202e abc", "ﬁ ß İ \u0131"]
SPECS = [
    *(
        {"type": "readability", "metric": m, "min": 110, "soft": 500}
        for m in ("flesch", "flesch_kincaid", "gunning_fog")
    ),
    {"type": "spelling"},
]


@pytest.mark.parametrize(
    ("word", "count"),
    [("cat", 1), ("the", 1), ("table", 2), ("make", 1), ("whale", 1), ("jumped", 1), ("wanted", 2), ("beautiful", 3)]
    + [("syllable", 3), ("rhythm", 1), ("see", 1), ("ed", 1), ("brr", 1), ("readability", 5), ("tree", 1)],
)
def test_syllables_of_known_words(word, count):
    assert syllables(word) == syllables(word.upper()) == count


def test_the_formulas_by_hand():
    # 2 sentences, 8 words; syllables: the cat sat = 3, an elephant remembered everything = 1 + 3 + 3 + 4, and yes = 1
    text = "The cat sat. An elephant remembered everything yes!"
    per_sentence, per_word, long_share = 4.0, 15 / 8, 3 / 8
    assert readability(text, "flesch") == pytest.approx(206.835 - 1.015 * per_sentence - 84.6 * per_word)
    assert readability(text, "flesch_kincaid") == pytest.approx(0.39 * per_sentence + 11.8 * per_word - 15.59)
    assert readability(text, "gunning_fog") == pytest.approx(0.4 * (per_sentence + 100 * long_share))


@pytest.mark.parametrize(
    ("text", "sentences"),
    [("a b. c d.", 2), ("a b... c d?!", 2), ("a 3.5 b", 1), ("a b\nc d", 2), ('"a b." c d', 2), ("... a b c d", 1)],
)
def test_sentences_end_at_stops_and_line_breaks(text, sentences):
    words = sum(part.isalpha() for part in text.replace(".", " ").replace("?!", "").replace('"', "").split())
    assert readability(text, "gunning_fog") == pytest.approx(0.4 * words / sentences)


def test_readability_is_1_in_the_band_and_falls_linearly_outside():
    easy = "The cat sat on the mat."
    value = readability(easy, "flesch")
    band = {"type": "readability", "metric": "flesch"}
    assert make_reward({**band, "min": 60}).score(easy, None) == 1.0
    assert make_reward({**band, "max": 60}).score(easy, None) == 0.0
    assert make_reward({**band, "max": value - 5, "soft": 20}).score(easy, None) == pytest.approx(0.75)
    assert make_reward({**band, "min": value + 15, "soft": 20}).score(easy, None) == pytest.approx(0.25)


def test_hard_text_is_harder_by_every_formula():
    easy = "The cat sat on the mat. It was a big red mat."
    hard = "Epistemological considerations necessitate comprehensive reevaluation of institutional responsibilities."
    assert readability(easy, "flesch") > 90 > 0 > readability(hard, "flesch")
    assert readability(easy, "flesch_kincaid") < 3 < 12 < readability(hard, "flesch_kincaid")
    assert readability(easy, "gunning_fog") < 4 < 12 < readability(hard, "gunning_fog")


def test_text_without_words_has_no_readability():
    assert make_reward({"type": "readability", "min": 1})(["", " \n", "12 + 3.", "🙂"]) == [None] * 4


def test_spelling_is_the_share_of_words_that_pyspellchecker_knows():
    checker = SpellChecker("en")
    assert "the" in checker
    assert "teh" not in checker
    texts = ["we like the cat", "we like teh cat", "xqzt blorfg", "it isn\u2019t the dog's well-known bed", ""]
    assert make_reward({"type": "spelling"})(texts) == [1.0, 0.75, 0.0, 1.0, 0.0]


def test_names_and_words_with_digits_are_not_spelled():
    reward = make_reward({"type": "spelling"})
    assert reward(["Xqzt likes the b2b 3rd cat", "Xqzt likes teh b2b 3rd blorfg"]) == [1.0, pytest.approx(1 / 3)]
    assert reward(["Xqzt", "42", "B2B 7"]) == [None] * 3


def test_spelling_has_a_language():
    assert make_reward({"type": "spelling", "language": "de"}).score("das schöne haus", None) == 1.0
    assert make_reward({"type": "spelling", "language": "en"}).score("das schöne haus", None) < 1.0


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_hostile_texts_have_a_score_within_the_range_or_none(spec):
    assert all(value is None or 0.0 <= value <= 1.0 for value in make_reward(spec)(HOSTILE))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_batch_scores_as_its_rows_one_at_a_time(spec):
    reward = make_reward(spec)
    texts = ["The cat sat.", "a considerable teh.", "so it goes, on and on and on", "The cat sat.", "blorfg"]
    assert reward(texts) == [reward.score(text, None) for text in texts]
    assert len(set(reward(texts))) > 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"type": "readability"}, "min = None: must be given, or max"),
        ({"type": "readability", "min": 2, "max": 1}, r"max = 1.0: must be at least min \(2.0\)"),
        ({"type": "readability", "min": float("nan")}, "min = nan: must be finite"),
        ({"type": "readability", "min": 1, "soft": -1}, "soft = -1"),
        ({"type": "readability", "min": 1, "metric": "smog"}, "metric = 'smog'"),
        ({"type": "spelling", "language": "xx"}, "language = 'xx'"),
    ],
)
def test_bad_options_are_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        make_reward(spec)
