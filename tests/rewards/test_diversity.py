import pytest

from trl_ext.errors import ConfigError
from trl_ext.rewards import make_reward

HOSTILE = ["", "  \n", "\x00", "\ud800", "a" * 1_000_000, "a " * 500_000, "مرحبا بالعالم", "🙂" * 50, "\u202e abc"]
CORPUS = "The cat sat\non the mat."


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_bytes(CORPUS.encode() + b" \xff")
    return str(path)


def test_diversity_is_the_share_of_ngrams_that_no_other_of_the_group_has():
    reward = make_reward({"type": "diversity"})
    texts = ["the cat sat", "the cat ran", "a dog", "a dog"]
    assert reward(texts, prompts=["p"] * 4) == [0.5, 0.5, 0.0, 0.0]
    assert make_reward({"type": "diversity", "n": 1})(texts[:2], prompts=["p"] * 2) == pytest.approx([1 / 3, 1 / 3])


def test_diversity_compares_completions_to_the_same_prompt_only():
    reward = make_reward({"type": "diversity"})
    texts = ["a b", "a b", "a b c", "x y"]
    assert reward(texts, prompts=["p", "q", "p", "q"]) == [0.0, 1.0, 0.5, 1.0]
    chats = [[{"role": "user", "content": prompt}] for prompt in "pqpq"]
    assert reward(texts, prompts=chats) == [0.0, 1.0, 0.5, 1.0]


def test_diversity_of_short_empty_and_lone_completions():
    reward = make_reward({"type": "diversity"})
    assert reward(["yes", "no", "no", "", "!"], prompts=["p"] * 5) == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert reward(["a b", "c d", "e f"], prompts=["p", "q", "q"]) == [None, 1.0, 1.0]
    assert str(reward.score("a b", None)) == "nan"


def test_diversity_does_not_depend_on_the_order_of_the_batch():
    reward = make_reward({"type": "diversity"})
    texts = ["the cat sat", "the cat ran off", "a dog", "", "a dog sat down"]
    prompts = ["p", "p", "q", "q", "q"]
    scores = reward(texts, prompts=prompts)
    assert scores[::-1] == reward(texts[::-1], prompts=prompts[::-1])
    assert len(set(scores)) > 2
    assert scores == reward(texts[:2], prompts=prompts[:2]) + reward(texts[2:], prompts=prompts[2:])


def test_repetition_is_the_share_of_distinct_ngrams():
    reward = make_reward({"type": "repetition"})
    assert reward(["a b c d", "a b c a b c", "x x x x x", "x", "", " . "]) == [
        1.0,
        0.75,
        pytest.approx(1 / 3),
        1.0,
        0,
        0,
    ]
    assert make_reward({"type": "repetition", "n": 1}).score("The the cat cat", None) == 0.5


def test_novelty_is_the_share_of_ngrams_that_the_corpus_lacks(corpus):
    reward = make_reward({"type": "novelty", "corpus": corpus})
    texts = ["a dog ran", "the cat sat", "cat SAT, on", "the cat sat down", "the cat", ""]
    assert reward(texts) == [1.0, 0.0, 0.0, 0.5, 0.0, 0.0]
    assert make_reward({"type": "novelty", "corpus": corpus, "n": 1}).score("mat dog", None) == 0.5


def test_the_corpus_is_read_once_and_not_before_the_first_batch(corpus, tmp_path):
    reward = make_reward({"type": "novelty", "corpus": corpus})
    (tmp_path / "corpus.txt").write_text("one two three")
    assert reward(["one two three"]) == [0.0]
    (tmp_path / "corpus.txt").unlink()
    assert reward(["one two three", "one two four"]) == [0.0, 1.0]


@pytest.mark.parametrize("type_", ["repetition", "novelty"])
def test_a_batch_scores_as_its_rows_one_at_a_time(type_, corpus):
    reward = make_reward({"type": type_, **({"corpus": corpus} if type_ == "novelty" else {})})
    texts = ["the cat sat here", "x x x x", "", "on the mat on the mat", "the cat sat here"]
    assert reward(texts) == [reward.score(text, None) for text in texts]
    assert len(set(reward(texts))) > 2


@pytest.mark.parametrize("type_", ["diversity", "repetition", "novelty"])
def test_hostile_texts_have_a_score_within_the_range(type_, corpus):
    reward = make_reward({"type": type_, **({"corpus": corpus} if type_ == "novelty" else {})})
    assert all(0.0 <= value <= 1.0 for value in reward(HOSTILE, prompts=["\ud800"] * len(HOSTILE)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"type": "diversity", "n": 0}, "n = 0: must be from 1 to 10"),
        ({"type": "repetition", "n": 11}, "n = 11: must be from 1 to 10"),
        ({"type": "novelty"}, "corpus: must be given"),
        ({"type": "novelty", "corpus": "/nowhere.txt"}, "corpus = '/nowhere.txt': must be a text file"),
        ({"type": "diversity", "n": "two"}, "n = 'two'"),
    ],
)
def test_bad_options_are_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        make_reward(spec)
