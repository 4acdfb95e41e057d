"""Seeded completions for the reward benchmark: groups of 8 to a prompt, as a model samples them.

What is assumed, as no samples of a real model can be shipped:

- English words with the frequencies of pyspellchecker's list (subtitles), its first 20,000 words.
- 60 to 200 words a completion, log-normal with a median of 90: a heavy tail.
- The completions of a group say the reference in other words: of its sentences, cut or repeated to their own length,
  a part of the words is replaced (10 to 60 %, drawn for each completion) and a sentence may be moved.
- One completion in 8 repeats another of its group exactly.
- Mathematics: a chain of thought with inline formulas that ends in a box, in dollars, in a display or bare. Two thirds
  of the references are integers, as in GSM8K and AIME, one third LaTeX, as in MATH (fractions, roots, intervals,
  tuples). A group has 3 distinct answers on average: the right one in about half of the completions, for LaTeX in
  two ways of writing, and wrong ones that are near it. One completion in 50 is cut off before its box.
"""

import functools
import itertools
import json
import random
from dataclasses import dataclass, field
from typing import Any

GROUP = 8
REPEATED = 1 / 8


@dataclass
class Rows:
    """Completions with their prompts and references, and whatever columns a reward wants."""

    completions: list[str]
    prompts: list[str]
    target: list[Any]
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def head(self, count: int) -> "Rows":
        """The first `count` rows."""
        columns = {name: column[:count] for name, column in self.columns.items()}
        return Rows(self.completions[:count], self.prompts[:count], self.target[:count], columns)


@functools.cache
def _vocabulary() -> tuple[list[str], list[int]]:
    from spellchecker import SpellChecker

    counts = SpellChecker("en").word_frequency.dictionary
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:20_000]
    words, frequencies = zip(*common, strict=True)
    return list(words), list(itertools.accumulate(frequencies))


def _words(draw: random.Random, count: int) -> list[str]:
    words, cumulative = _vocabulary()
    return draw.choices(words, cum_weights=cumulative, k=count)


def _sentence(draw: random.Random) -> list[str]:
    return _words(draw, draw.randint(6, 22))


def _length(draw: random.Random) -> int:
    while True:
        words = round(draw.lognormvariate(4.5, 0.45))
        if 60 <= words <= 200:
            return words


def _text(sentences: list[list[str]]) -> str:
    return " ".join(" ".join(words).capitalize() + "." for words in sentences if words)


def _reference(draw: random.Random) -> list[list[str]]:
    sentences, length = [], _length(draw)
    while (missing := length - sum(map(len, sentences))) > 0:
        sentences.append(_sentence(draw)[:missing])
    return sentences


def _variation(draw: random.Random, reference: list[list[str]]) -> str:
    share, length = draw.uniform(0.1, 0.6), _length(draw)
    sentences: list[list[str]] = []
    for source in itertools.cycle(reference):
        missing = length - sum(map(len, sentences))
        if missing <= 0:
            break
        other = iter(_words(draw, len(source)))
        sentences.append([next(other) if draw.random() < share else word for word in source][:missing])
    if draw.random() < 0.5:
        sentences.append(sentences.pop(draw.randrange(len(sentences))))
    return _text(sentences)


def _with_repeats(draw: random.Random, group: list[str]) -> list[str]:
    for i in range(1, len(group)):
        if draw.random() < REPEATED * len(group) / (len(group) - 1):
            group[i] = group[draw.randrange(i)]
    return group


def prose(seed: int, prompts: int) -> Rows:
    """Answers with a reference text."""
    draw = random.Random(seed)
    rows = Rows([], [], [])
    for _ in range(prompts):
        reference = _reference(draw)
        rows.completions += _with_repeats(draw, [_variation(draw, reference) for _ in range(GROUP)])
        rows.prompts += [_text([_sentence(draw)])] * GROUP
        rows.target += [_text(reference)] * GROUP
    return rows


def mathematics(seed: int, prompts: int) -> Rows:
    """Chains of thought with a boxed answer; the references are the answers."""
    draw = random.Random(seed)
    rows = Rows([], [], [])
    for prompt in range(prompts):
        reference, right, wrong = _latex_answers(draw) if prompt % 3 == 2 else _integer_answers(draw)
        skill = draw.uniform(0.2, 0.9)
        group = [draw.choice(right) if draw.random() < skill else draw.choice(wrong) for _ in range(GROUP)]
        rows.completions += [_chain_of_thought(draw, answer) for answer in group]
        rows.prompts += [_text([_sentence(draw)])] * GROUP
        rows.target += [reference] * GROUP
    return rows


def _integer_answers(draw: random.Random) -> tuple[str, list[str], list[str]]:
    answer = round(draw.lognormvariate(4, 2))
    near = [str(answer + step) for step in (1, draw.randint(2, 20), -draw.randint(1, 10))]
    return str(answer), [str(answer)] if answer < 1000 else [str(answer), f"{answer:,}"], near


def _latex_answers(draw: random.Random) -> tuple[str, list[str], list[str]]:
    a, b = draw.sample(range(2, 20), 2)
    low, high = sorted((a, b))
    root = draw.choice([2, 3, 5, 7, 11])
    right, wrong = draw.choice(
        [
            (
                [rf"\frac{{{a}}}{{{b}}}", rf"\dfrac{{{a}}}{{{b}}}"],
                [rf"\frac{{{b}}}{{{a}}}", rf"\frac{{{a + 1}}}{{{b}}}"],
            ),
            (
                [rf"{a}\sqrt{{{root}}}", rf"\sqrt{{{root * a * a}}}"],
                [rf"{b}\sqrt{{{root}}}", rf"{a}\sqrt{{{root + 1}}}"],
            ),
            ([rf"\frac{{{a}\pi}}{{{b}}}", rf"{a}\pi/{b}"], [rf"\frac{{{b}\pi}}{{{a}}}", rf"{a}\pi"]),
            ([f"({a}, {b})", f"({a},{b})"], [f"({b}, {a})", f"({a}, {-b})"]),
            ([f"[{low}, {high})", f"[{low},{high})"], [f"[{low}, {high}]", rf"[{low}, \infty)"]),
            ([f"x^2 - {a}x + {b}", f"{b} - {a}x + x^2"], [f"x^2 + {a}x + {b}", f"x^2 - {b}x + {a}"]),
        ]
    )
    return f"${right[0]}$", right, wrong


def _chain_of_thought(draw: random.Random, answer: str) -> str:
    sentences = []
    while sum(map(len, sentences)) < _length(draw):
        a, b = draw.randint(2, 99), draw.randint(2, 99)
        formula = draw.choice(
            [f"${a} + {b} = {a + b}$", f"$x = {a}$", rf"\({a}x - {b}\)", rf"\[ {a} \cdot {b} = {a * b} \]"]
        )
        sentences.append([*_sentence(draw), formula])
    text = _text(sentences)
    if draw.random() < 1 / 50:
        return text
    box = draw.choice(["${}$", "${}$", r"\[ {} \]", "{}"]).format(rf"\boxed{{{answer}}}")
    return f"{text}\n\nTherefore, the answer is {box}."


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 8},
        "address": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def json_objects(seed: int, prompts: int) -> Rows:
    """JSON by `SCHEMA`, of which a part is wrong or cut off."""
    draw = random.Random(seed)
    rows = Rows([], [], [])
    for _ in range(prompts):
        rows.completions += _with_repeats(draw, [_json_object(draw) for _ in range(GROUP)])
        rows.prompts += [_text([_sentence(draw)])] * GROUP
        rows.target += [""] * GROUP
    return rows


def _json_object(draw: random.Random) -> str:
    value: dict[str, Any] = {"name": " ".join(_words(draw, 2)), "age": draw.randint(-5, 90)}
    value["tags"] = _words(draw, draw.randint(0, 10))
    value["address"] = {draw.choice(["city", "city", "town"]): _words(draw, 1)[0]}
    text = json.dumps(value, indent=draw.choice([None, 2]))
    return text[: len(text) // 2] if draw.random() < 0.1 else text


# A task: its function, asserts with room for two numbers, a right body and two wrong ones.
_TASKS = [
    (
        "def total(numbers):",
        [
            "total([{a}, {b}]) == {a} + {b}",
            "total([]) == 0",
            "total(range({a})) == sum(range({a}))",
            "total([-{b}]) == -{b}",
        ],
        ["{r} = 0\n    for {i} in numbers:\n        {r} += {i}\n    return {r}", "return sum(numbers)"],
        ["{r} = 0\n    for {i} in numbers[1:]:\n        {r} += {i}\n    return {r}", "return max(numbers)"],
    ),
    (
        "def is_palindrome(text):",
        ["is_palindrome('level' * {a}) == True", "is_palindrome('ab' * {b}) == False", "is_palindrome('') == True"],
        [
            "{r} = list(text)\n    return {r} == {r}[::-1]",
            "return all({i} == {r} for {i}, {r} in zip(text, reversed(text)))",
        ],
        ["return text[0] == text[-1]", "{r} = text.reverse()\n    return {r} == text"],
    ),
    (
        "def primes(limit):",
        [
            "primes({b})[:1] == ([2] if {b} >= 2 else [])",
            "primes(1) == []",
            "primes(20) == [2, 3, 5, 7, 11, 13, 17, 19]",
        ],
        ["return [{i} for {i} in range(2, limit + 1) if all({i} % {r} for {r} in range(2, {i}))]"],
        [
            "return [{i} for {i} in range(1, limit) if {i} % 2]",
            "{r} = []\n    while True:\n        raise ValueError(limit)",
        ],
    ),
    (
        "def count_words(text):",
        [
            "count_words('a b a') == {{'a': 2, 'b': 1}}",
            "count_words('x ' * {a}) == {{'x': {a}}}",
            "count_words('') == {{}}",
        ],
        ["{r} = {{}}\n    for {i} in text.split():\n        {r}[{i}] = {r}.get({i}, 0) + 1\n    return {r}"],
        [
            "{r} = {{}}\n    for {i} in text:\n        {r}[{i}] = {r}.get({i}, 0) + 1\n    return {r}",
            "return text.count(' ')",
        ],
    ),
    (
        "def rotate(items, steps):",
        [
            "rotate([1, 2, 3], 1) == [3, 1, 2]",
            "rotate([], {a}) == []",
            "rotate(list(range({b} + 2)), 0)[-1] == {b} + 1",
        ],
        ["{r} = steps % len(items) if items else 0\n    return items[-{r}:] + items[:-{r}] if {r} else items"],
        ["return items[steps:] + items[:steps]", "{r} = items.pop()\n    return [{r}] + items"],
    ),
]


def programs(seed: int, prompts: int) -> Rows:
    """Functions in a block of Python, to be tested by 3 to 5 assert lines; in half of the groups most are wrong."""
    draw = random.Random(seed)
    rows = Rows([], [], [])
    for _ in range(prompts):
        head, tests, right, wrong = draw.choice(_TASKS)
        skill = draw.choice([0.1, 0.7])
        group = [_program(draw, head, draw.choice(right if draw.random() < skill else wrong)) for _ in range(GROUP)]
        asserts = [f"assert {test}".format(a=draw.randint(1, 9), b=draw.randint(1, 9)) for test in tests]
        asserts += [draw.choice(asserts) for _ in range(draw.randint(0, 5 - len(asserts)))]
        rows.completions += _with_repeats(draw, group)
        rows.prompts += [_text([_sentence(draw)])] * GROUP
        rows.target += [asserts] * GROUP
    return rows


def _program(draw: random.Random, head: str, body: str) -> str:
    names = dict(zip("ri", draw.sample(["result", "value", "out", "item", "x", "n", "part"], 2), strict=True))
    comment = " ".join(_words(draw, draw.randint(3, 12)))
    block = f"```python\n{head}\n    # {comment}\n    {body.format(**names)}\n```"
    return f"{_text([_sentence(draw) for _ in range(draw.randint(3, 8))])}\n\n{block}"
