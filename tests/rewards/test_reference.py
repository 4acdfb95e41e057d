import math
import random

import pytest

import trl_ext.rewards.reference as reference
from trl_ext.errors import ConfigError
from trl_ext.rewards import make_reward

TYPES = ["bleu", "chrf", "rouge_l", "rouge_1", "rouge_2", "ter"]
OPTIONS = [
    *({"type": name} for name in TYPES),
    *({"type": "bleu", "smooth_method": method} for method in ("floor", "add-k", "none")),
    *({"type": "bleu", "tokenize": name} for name in ("intl", "zh", "char")),
    {"type": "chrf", "word_order": 2, "lowercase": True},
    {"type": "rouge_l", "use_stemmer": False, "lowercase": False},
    {"type": "ter", "shifts": True},
]
GOLD = "The quick brown foxes were jumping over 13 lazy dogs."
CLOSE = "Quick brown fox jumps over 12 lazy dogs, they say."
WRONG = "Completely unrelated: nobody asked"
HOSTILE = [
    "",
    " \t\n",
    "\x00\x00",
    "\ud800",
    "😀👍🏽",
    "שלום עולם",
    "مرحبا بالعالم",
    "%s {0} \\boxed{",
    "&quot;<skipped>",
    "...",
    "a" * 1_000_000,
    "a " * 500_000,
    "漢字" * 500_000,
    "y" * 1_000_000,
    "a," * 500_000,
    "\n" * 1_000_000,
]


def one(spec: dict, completion: str, target: object) -> float | None:
    return make_reward(spec)(completions=[completion], target=[target])[0]


def random_texts(number: int, seed: int = 0) -> list[str]:
    """English-like texts of 0 to 40 words, with inflections for the stemmer, punctuation and underscores."""
    pick = random.Random(seed)
    words = (
        "run running runs easily generously relational flies sky skies dying a of the THE state-of-the-art x_y 42 it's"
    )
    return [
        " ".join(pick.choices(words.split(), k=pick.randint(0, 40))) + pick.choice(["", ".", " !"])
        for _ in range(number)
    ]


@pytest.mark.parametrize("spec", OPTIONS, ids=str)
def test_gold_scores_1_a_close_text_less_and_a_wrong_or_empty_one_0(spec):
    scores = make_reward(spec)(completions=[GOLD, CLOSE, WRONG, "", " \n"], target=[GOLD] * 5)
    assert scores[0] == pytest.approx(1.0)
    assert scores[0] <= 1.0
    assert 0 < scores[1] < 1 or spec.get("smooth_method") == "none"
    assert scores[2] < scores[1] or spec.get("smooth_method") == "none"
    # characters are shared by any two texts of one script
    assert scores[2] < 0.01 or spec["type"] == "chrf" or spec.get("tokenize") == "char"
    assert scores[3:] == [0.0, 0.0]


@pytest.mark.parametrize("name", TYPES)
def test_without_a_reference_there_is_no_score(name):
    scores = make_reward({"type": name})(completions=["a", "a", "a", "a"], target=[None, [], [None], [None, "a"]])
    assert scores == [None, None, None, 1.0]


@pytest.mark.parametrize("name", TYPES)
def test_an_empty_answer_is_right_only_where_the_reference_is_empty(name):
    assert one({"type": name}, "", "") == 1.0
    assert one({"type": name}, " ", ["some words", "\n"]) == 1.0
    assert one({"type": name}, "words", "") == 0.0
    assert one({"type": name}, "", "words") == 0.0


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("text", ["yes", "a", "42"])
def test_gold_of_one_word_scores_1(name, text):
    assert one({"type": name}, text, text) == pytest.approx(1.0)


@pytest.mark.parametrize("spec", OPTIONS, ids=str)
def test_a_batch_scores_as_its_completions_one_at_a_time(spec):
    texts, targets = random_texts(12), random_texts(12, seed=1)
    reward = make_reward(spec)
    assert reward(completions=texts, target=targets) == [
        reward.score(text, target) for text, target in zip(texts, targets, strict=True)
    ]


@pytest.mark.parametrize("name", TYPES)
def test_of_several_references_a_matching_one_is_enough(name):
    assert one({"type": name}, GOLD, [WRONG, GOLD]) == pytest.approx(1.0)
    assert one({"type": name}, CLOSE, [WRONG, GOLD]) >= one({"type": name}, CLOSE, GOLD) - 1e-12


@pytest.mark.parametrize("smooth_method", ["exp", "floor", "add-k", "none"])
@pytest.mark.parametrize("lowercase", [True, False])
def test_bleu_is_that_of_sacrebleu(smooth_method, lowercase):
    import sacrebleu

    spec = {"type": "bleu", "smooth_method": smooth_method, "lowercase": lowercase}
    for text in [CLOSE, WRONG, *filter(str.strip, random_texts(5))]:
        theirs = sacrebleu.sentence_bleu(
            text, [GOLD, CLOSE.upper()], smooth_method=smooth_method, lowercase=lowercase, use_effective_order=True
        )
        assert one(spec, text, [GOLD, CLOSE.upper()]) == pytest.approx(theirs.score / 100, abs=1e-12)


def test_bleu_has_a_known_value():
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 fours, no brevity penalty
    expected = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4)
    assert one({"type": "bleu"}, "the cat sat on a mat", "the cat sat on the mat") == pytest.approx(expected)


def test_bleu_by_characters_tells_chinese_sentences_apart():
    close, far = "今天天气很好", "我不喜欢苹果"
    assert one({"type": "bleu"}, close, "今天天气很坏") == 0.0
    assert one({"type": "bleu", "tokenize": "char"}, close, "今天天气很坏") > 0.5
    assert one({"type": "bleu", "tokenize": "char"}, far, "今天天气很坏") == 0.0


def test_sacrebleu_keeps_no_text_of_a_batch():
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    from sacrebleu.tokenizers.tokenizer_re import TokenizerRegexp
    from sacrebleu.tokenizers.tokenizer_ter import TercomTokenizer

    one({"type": "bleu"}, CLOSE, GOLD)
    one({"type": "ter", "shifts": True}, CLOSE, GOLD)
    assert Tokenizer13a.__call__.cache_info().currsize == 0
    assert TokenizerRegexp.__call__.cache_info().currsize == 0
    assert TercomTokenizer.__call__.cache_info().currsize == 0


@pytest.mark.parametrize("word_order", [0, 2])
@pytest.mark.parametrize("lowercase", [True, False])
def test_chrf_is_that_of_sacrebleu(word_order, lowercase):
    from sacrebleu.metrics import CHRF

    metric = CHRF(word_order=word_order, lowercase=lowercase)
    for text in (CLOSE, CLOSE.upper(), WRONG, "привет мир"):
        ours = one({"type": "chrf", "word_order": word_order, "lowercase": lowercase}, text, [GOLD, "Привет, мир"])
        assert ours == pytest.approx(metric.sentence_score(text, [GOLD, "Привет, мир"]).score / 100, abs=1e-12)


@pytest.mark.parametrize("use_stemmer", [True, False])
@pytest.mark.parametrize(("name", "theirs"), [("rouge_l", "rougeL"), ("rouge_1", "rouge1"), ("rouge_2", "rouge2")])
def test_rouge_on_ascii_is_that_of_rouge_score(name, theirs, use_stemmer):
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([theirs], use_stemmer=use_stemmer)
    reward = make_reward({"type": name, "use_stemmer": use_stemmer})
    texts = [GOLD, CLOSE, WRONG, *(text for text in random_texts(60) if len(text.split()) > 1)]
    pairs = [(text, texts[(5 * i + 1) % len(texts)]) for i, text in enumerate(texts)]
    expected = [scorer.score(target, text)[theirs].fmeasure for text, target in pairs]
    ours = reward(completions=[text for text, _ in pairs], target=[target for _, target in pairs])
    assert ours == pytest.approx(expected, abs=1e-12)
    assert len({round(score, 6) for score in ours}) > 20


def test_rouge_l_has_a_known_value():
    assert one({"type": "rouge_l"}, "a b c d", "a c x") == pytest.approx(2 * 2 / 7)


def test_rouge_stems_words_and_folds_case_only_where_asked():
    for name in ("rouge_l", "rouge_1"):
        assert one({"type": name}, "Runs Jumping", "run jumped") == 1.0
        assert one({"type": name, "use_stemmer": False}, "Runs Jumping", "run jumped") == 0.0
        assert one({"type": name, "use_stemmer": False, "lowercase": False}, "Run on", "run on") == 0.5
        assert one({"type": name, "lowercase": False}, "Jumping on", "jumping on") == 0.5


@pytest.mark.parametrize(
    ("close", "target"),
    [
        ("привет большой мир", "привет мир"),
        ("今天天气很好", "今天天气很坏"),
        ("สวัสดีครับ", "สวัสดีค่ะ"),
        ("हिन्दी भाषा सुंदर", "हिन्दी भाषा"),
        ("שלום עולם גדול", "שלום עולם"),
        ("un café noir", "un café serré"),
    ],
)
@pytest.mark.parametrize("name", ["rouge_l", "rouge_1", "ter"])
def test_words_of_any_script_count(name, close, target):
    assert one({"type": name}, target, target) == 1.0
    assert 0.4 < one({"type": name}, close, target) < 1
    assert one({"type": name}, "hello", target) == 0.0


def test_a_hindi_word_is_one_word_and_marks_belong_to_their_letters():
    assert one({"type": "rouge_1"}, "हिन्दी", "हिन्दू") == 0.0
    assert one({"type": "rouge_1"}, "cafe\u0301", "cafe") == 0.0


def test_rouge_l_of_a_batch_is_rouge_scores():
    from rouge_score.rouge_scorer import RougeScorer

    texts = [" ".join(random_texts(5, seed=seed)) for seed in range(17)]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    expected = [scorer.score(texts[-1], text)["rougeL"].fmeasure for text in texts[:-1]]
    assert make_reward({"type": "rouge_l"})(texts[:-1], target=[texts[-1]] * 16) == pytest.approx(expected)


def test_ter_counts_the_edits_of_words():
    assert one({"type": "ter"}, "the cat sat on a mat", "the cat sat on the mat") == pytest.approx(1 - 1 / 6)
    assert one({"type": "ter"}, "THE cat", "the cat") == 1.0
    assert one({"type": "ter", "lowercase": False}, "THE cat", "the cat") == 0.5
    assert one({"type": "ter"}, "a b c d e f g", "x y") == 0.0


def test_ter_with_shifts_is_that_of_sacrebleu_and_without_is_its_edit_rate():
    import sacrebleu

    for text in (CLOSE, WRONG, "over lazy dogs the quick brown foxes", *filter(None, random_texts(4))):
        theirs = max(0.0, 1 - sacrebleu.sentence_ter(text, [GOLD]).score / 100)
        assert one({"type": "ter", "shifts": True}, text, GOLD) == pytest.approx(theirs, abs=1e-12)
    moved, target = "d e f a b c", "a b c d e f"
    assert one({"type": "ter", "shifts": True}, moved, target) == pytest.approx(1 - 1 / 6)
    assert one({"type": "ter"}, moved, target) == 0.0
    # nothing to move: the same edits
    theirs = 1 - sacrebleu.sentence_ter("a x c e", ["a b c d e"]).score / 100
    assert one({"type": "ter"}, "a x c e", "a b c d e") == pytest.approx(theirs)


def test_long_texts_are_scored_without_shifts():
    words = [f"w{i}" for i in range(reference.MAX_SHIFT_WORDS + 1)]
    moved = " ".join(words[10:] + words[:10])
    short = " ".join(words[10:-1] + words[:10])
    assert one({"type": "ter", "shifts": True}, moved, " ".join(words)) == one({"type": "ter"}, moved, " ".join(words))
    assert one({"type": "ter", "shifts": True}, short, " ".join(words[:-1])) == pytest.approx(1 - 1 / 50)


@pytest.mark.parametrize("name", ["rouge_l", "rouge_1", "rouge_2", "ter"])
def test_words_past_the_bound_do_not_count(name):
    within = " ".join(["word"] * reference.MAX_WORDS)
    assert one({"type": name}, within + " more" * 1000, within) == 1.0
    assert one({"type": name}, within[:-50] + " more" * 1000, within) < 1.0


@pytest.mark.parametrize("spec", OPTIONS, ids=str)
def test_any_text_gives_a_finite_score(spec):
    reward = make_reward(spec)
    for text in HOSTILE:
        scores = reward(completions=[text, GOLD, text], target=[GOLD, text, text])
        assert all(score is not None and math.isfinite(score) and 0 <= score <= 1 for score in scores), text[:10]


def test_a_reference_that_is_no_string_is_scored_as_its_text():
    assert [one({"type": name}, "42", 42) for name in TYPES] == pytest.approx([1.0] * 6)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"type": "bleu", "smooth_method": "laplace"}, "smooth_method = 'laplace'"),
        ({"type": "bleu", "tokenize": "ja-mecab"}, "tokenize = 'ja-mecab'"),
        ({"type": "bleu", "lowercas": True}, "did you mean lowercase"),
        ({"type": "chrf", "word_order": 1}, "word_order = 1"),
        ({"type": "rouge_l", "use_stemmer": "perhaps"}, "use_stemmer = 'perhaps'"),
        ({"type": "ter", "shifts": 7}, "shifts = 7"),
    ],
)
def test_a_bad_option_is_refused(spec, message):
    with pytest.raises(ConfigError) as refused:
        make_reward(spec)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
