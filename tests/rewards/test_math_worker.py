import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rewards.verifying import items, structure
from trl_ext.rewards import math_worker

# What the letters of these stand for is drawn: E an expression, A an atom.
SHAPES = r"""E+E|E-E|E E|E\cdot E|E/E|\frac{E}{E}|\sqrt{E}|E^{E}|A^2|(E)|(E,E)|[E, E)|\{E,E\}|E, E|A=E|E<E|A\in E
E\cup E|\sin E|\log_{2}(A)|\ln A|A!|-E|A\%|A^\circ|\begin{pmatrix}E\\E\end{pmatrix}|\sum_{k=1}^{3} A|\sqrt[3]{A}"""
ATOMS = r"1|2|12|0.5|-3|x|y|n|\pi|e|i|10|\infty|1,000|AB|\text{yes}|\bnom|{|"
PAIRS = r"""2(x+1)=2x+2|(x+1)^2=x^2+2x+1|x(x-1)=x^2-x+1|\sqrt{12}=2\sqrt{3}|\frac{1}{\sqrt{2}}=\frac{\sqrt{2}}{2}
\sin(\pi/6)=\frac12|(\sqrt2+1)(\sqrt2-1)=1|\sqrt{3+2\sqrt2}=1+\sqrt2|\cos^2 x+\sin^2 x=1|\log_2 8=3|\ln 4=2\ln 2
\ln 4=\ln 5|\frac{x^2-1}{x-1}=x+1|0.333333=\frac13|0.3333=\frac13|33.3333\%=\frac13|10^{-7}=0|10^{-5}=0
\pi=3.14159265|\pi=3.1415|\binom{5}{2}=10|5!=120|\infty=3|3=\infty|\sqrt{\infty}=\log_2 12|\infty=-\infty
\frac{x}{\sqrt2}=\frac{\sqrt2 x}{2}|\sqrt{x^2}=x|e^{i\pi}=-1|0.1x=\frac{x}{10}|(1,2)=(1,2)|(1,2)=(2,1)|[1,2)=[1,2]
\{2,1\}=\{1,2\}|x^2-9x+4=4-9x+x^2|2\sqrt{3}=3\sqrt{2}"""


def expression(draw: random.Random, depth: int) -> str:
    if depth == 0:
        return draw.choice(items(ATOMS))
    return "".join(
        expression(draw, draw.randrange(depth))
        if letter == "E"
        else draw.choice(items(ATOMS))
        if letter == "A"
        else letter
        for letter in draw.choice(items(SHAPES))
    )


@pytest.fixture
def plain_first(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """math-verify as it is; what a test has made of it is undone."""
    from latex2sympy2_extended import latex2sympy2
    from math_verify import grader, parser

    for owner, name in ((latex2sympy2.PSParser, "math"), (grader, "sympy_symbolic_eq"), (parser, "lazy_latex_regex")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    forget()  # what other tests have left in sympy's cache can change what math-verify finds
    yield
    forget()


def forget() -> None:
    from math_verify import parser
    from sympy.core.cache import clear_cache

    clear_cache()
    parser.parse_latex_cached.cache_clear()
    parser.extract_latex.cache_clear()


def parsed(texts: list[str]) -> list[list[str]]:
    return [structure(math_worker._parse_anew(text, is_gold=text.startswith("$"))) for text in texts]


def test_the_faster_parser_reads_what_math_verify_reads(plain_first: None) -> None:
    draw = random.Random(0)
    texts = [draw.choice(["${}$", r"\boxed{{{}}}"]).format(expression(draw, draw.choice([1, 2]))) for _ in range(400)]
    expected = parsed(texts)
    assert sum(len(parts) == 2 for parts in expected) > 200
    assert sum(len(parts) == 1 for parts in expected) > 20  # malformed: only the string
    math_worker.speed_up()
    forget()
    assert parsed(texts) == expected


def test_the_faster_comparison_finds_what_math_verify_finds() -> None:
    """In a process of its own: what else has been computed in one, and in which order sets are gone through, can
    change what math-verify itself finds."""
    program = "from tests.rewards.test_math_worker import compare_both; compare_both()"
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-c", program]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, timeout=300, env=environment)


def compare_both() -> None:
    from math_verify import verify
    from sympy.core.random import seed  # by which sympy tries out numbers where it finds no proof

    draw = random.Random(1)
    pairs = [tuple(pair.split("=")) for pair in items(PAIRS)]
    pairs += [(expression(draw, 1), expression(draw, 1)) for _ in range(150)]
    answers = [
        (math_worker._parse_anew(f"${a}$", True), math_worker._parse_anew(rf"\boxed{{{b}}}", False)) for a, b in pairs
    ]
    forget()
    seed(0)
    expected = [verify(gold, answer, timeout_seconds=None) for gold, answer in answers]
    assert 15 < sum(expected[: len(items(PAIRS))]) < len(items(PAIRS)) - 5
    math_worker.speed_up()
    forget()
    seed(0)
    assert [verify(gold, answer, timeout_seconds=None) for gold, answer in answers] == expected
