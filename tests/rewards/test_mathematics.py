import math
import pickle
import re
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rewards.verifying import HOSTILE, each, items, structure
from trl_ext.errors import ConfigError, RewardError
from trl_ext.rewards import make_reward, math_worker, mathematics


def test_hostile_texts_are_scored() -> None:
    reward = make_reward({"type": "math"})
    assert set(reward(HOSTILE, target=["43"] * len(HOSTILE))) == {0.0}
    assert all(score is None or math.isfinite(score) for score in reward(["43"] * len(HOSTILE), target=HOSTILE))


PAIRS = [
    (r"My answer is \boxed{\frac{1}{3}}", r"\frac{1}{3}"),
    (r"My answer is \boxed{\frac{1}{2}}", r"\frac{1}{3}"),
    (r"\boxed{0.5}", r"$\frac{1}{2}$"),
    (r"\boxed{(x+1)^2}", "$x^2+2x+1$"),
    (r"\boxed{x^2+2x+2}", "$x^2+2x+1$"),
    (r"\boxed{42}", "42"),
    ("42", "42"),
    ("The answer is 42", "42"),
    ("The answer is $42$.", "42"),
    ("the final ANSWER is $x=4$, I hope", "$4$"),
    (r"\boxed{x=4}", "4"),
    ("4", "$x=4$"),
    (r"\boxed{4}", "$x=4$"),
    (r"\boxed{\{2, 1\}}", r"$\{1,2\}$"),
    (r"\boxed{1, 2}", r"$(1,2)$"),
    (r"\boxed{1 < x < 2}", "$(1,2)$"),
    (r"\boxed{(1,2)}", "$1 < x < 2$"),
    (r"\boxed{50\%}", "$0.5$"),
    (r"\boxed{5\text{ cm}}", "5"),
    (r"first \boxed{1}, no: \boxed{2}", "2"),
    (r"\boxed{3}. The final answer is $4$. I hope it is correct.", "4"),
    (r"\boxed{\text{yes}}", r"$\text{yes}$"),
    (r"\boxed{\frac{1}{", "3"),
    (r"\boxed{3", "3"),
    (r"\boxed{3", r"\boxed{3}"),
    (r"\boxed{3}", r"\boxed{3}"),
    ("", "3"),
    (r"\boxed{3}", "no maths"),
]


def test_math_agrees_with_the_accuracy_reward_of_trl() -> None:
    from trl.rewards import accuracy_reward

    completions, target = map(list, zip(*PAIRS, strict=True))
    expected = accuracy_reward([[{"role": "assistant", "content": c}] for c in completions], target)
    assert {0.0, 1.0, None} == set(expected)
    assert make_reward({"type": "math"})(completions, target=target) == expected
    assert each({"type": "math"}, completions, target) == expected


ANSWERS = r"""5|-5|0|-0|+3|01|1,234|12,34|-1,250|1000000|0.5|.5|3.14|1,000.50|12%|50\%|20 \text{ cm}|5 cm
5\text{ cm}^2|\$5|$5|x=4|y = 2x+1|(1,2)|[1, 2)|(-\infty, 3]|\{1,2\}|1,2,3|1, 2|1 and 2|\frac{1}{2}|\dfrac34|3/4
-\frac{3}{4}|\sqrt{2}|2\sqrt3|\pi|\text{yes}|\text{(A)}|10^{5}|(x+1)^2|1<x<2|\begin{pmatrix}1\\2\end{pmatrix}|3+4i
90^{\circ}||{|}|{5}|\{|\}|a$b|5$|$\frac12$|\(5\)|x \in [1,2]|\boxed{7}|\fbox{7}|5.| 5 |1\,000|1{,}000
\left(1,2\right)|]|[|5\]|\%|percent"""
BOXED = st.builds(
    "{}\\boxed{{{}}}{}".format,
    st.sampled_from(["$", "$$", r"\[", r"\(", " [", "**", "", " = ", r"\$", "$k = "]),
    st.sampled_from(items(ANSWERS)),
    st.sampled_from(["$", "$$", r"\]", r"\)", "] ", "**", "", ".", "}", r"\$", "$ percent", "$%", "$\n pct"]),
)
BETWEEN = r""" | and |, | or| the final answer is |Answer: | so $x$ is |$5, | \[ a = b \] | $$ c $$ | [see]
 \frac{1}{2}|}|{|5% | I hope it is correct.|\fbox{3}"""
TEXT = st.lists(st.sampled_from([*items(BETWEEN), "\n\n", "a long text " * 7]), max_size=3).map("".join)
COMPLETION = st.builds("".join, st.tuples(TEXT, BOXED, TEXT) | st.tuples(TEXT, BOXED, TEXT, BOXED, TEXT))


def test_math_verify_reads_the_decisive_part_as_it_reads_the_completion() -> None:
    shortened = 0

    @settings(max_examples=1000, deadline=None, database=None, derandomize=True)
    @given(COMPLETION)
    def run(completion: str) -> None:
        nonlocal shortened
        part = mathematics.decisive(completion)
        if part != completion:
            shortened += 1
            assert structure(math_worker._parse_anew(part, False)) == structure(
                math_worker._parse_anew(completion, False)
            )

    run()
    assert shortened > 150


def test_a_completion_with_one_boxed_answer_is_judged_by_the_box_alone() -> None:
    for text in (
        r"so $x = 2$: $\boxed{\frac{1}{2}}$.",
        r"\[ x = \boxed{\frac{1}{2}} \] as 5% or }",
        r"\boxed{\frac{1}{2}}",
    ):
        expected = text if "%" in text else r"\boxed{\frac{1}{2}}"
        assert mathematics.decisive(text) == expected


def test_a_completion_without_an_answer_to_find_is_not_sent_to_math_verify() -> None:
    """Its own patterns must need a box, or "answer" and LaTeX."""
    from math_verify.parser import LatexExtractionConfig, lazy_latex_regex

    config = LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)
    patterns = [pattern.pattern for pattern, _ in lazy_latex_regex(config)]
    for pattern in patterns:
        assert pattern.startswith(("(?i:final answer", "(?i:answer)", "(?P<first_latexBoxed>\\\\boxed{")) or (
            "boxed" in pattern
        ), pattern
    for text in (
        "so $x = 4$ and \\[y = 5\\] and \\frac{1}{2} and $$z$$, 42 [1] ans\u0142wer boxed{3}",
        "The answer is 42, or x = \\pi, (3), answer: 1/2",
    ):
        assert mathematics.decisive(text) == ""
        assert not any(re.search(pattern, text, re.DOTALL) for pattern in patterns)


def test_integers_are_compared_as_math_verify_does() -> None:
    from math_verify import parse, verify

    numbers = [
        "0",
        "7",
        "-7",
        "70",
        "1250",
        "1,250",
        "-1,250",
        "12,345,678",
        "12345678",
        "123456789012345",
        "1234567890",
    ]
    others = ["-0", "007", "+7", "12,50", "1,25", "7.0", "7 ", "", "seven", "1234567890123456", "\u0667", "7\n"]
    for reference in numbers:
        for answer in numbers:
            verdict = mathematics.at_sight(reference, rf"\boxed{{{answer}}}")
            assert verdict == verify(parse(reference), math_worker._parse_anew(rf"\boxed{{{answer}}}", False))
        for other in others:
            assert mathematics.at_sight(reference, rf"\boxed{{{other}}}") is None
            assert mathematics.at_sight(other, rf"\boxed{{{reference}}}") is None
        assert mathematics.at_sight(reference, f"The answer is ${reference}$") is None


PLAIN = r"""1|23|0|4.5|0.10|x|x^2|x^3| |, |,|(|)|[|]|+|-| - |\pi|\infty|\frac{3}{4}|\dfrac{-12}{5}|\frac{3\pi}{4}
\sqrt{2}|\sqrt{12}|-2"""


def test_math_verify_finds_the_same_plain_latex_equal() -> None:
    from math_verify import verify

    seen = 0

    @settings(max_examples=400, deadline=None, database=None, derandomize=True)
    @given(st.lists(st.sampled_from(items(PLAIN)), min_size=1, max_size=6).map("".join))
    def run(content: str) -> None:
        nonlocal seen
        if mathematics.at_sight(f"${content}$", rf"\boxed{{{content}}}") is not None:
            seen += 1
            gold = math_worker._parse_anew(f"${content}$", True)
            assert verify(gold, math_worker._parse_anew(rf"\boxed{{{content}}}", False), timeout_seconds=None)

    run()
    assert seen > 200


@pytest.mark.parametrize("content", items(r"5m|\frac{1}{2}3|\dfrac34|9^9^9|10!| ||x=1|\text{no}|1..2|n"))
def test_what_math_verify_may_read_in_two_ways_is_left_to_it(content: str) -> None:
    assert mathematics.at_sight(f"${content}$", rf"\boxed{{{content}}}") is None


def test_a_missing_answer_to_an_integer_is_wrong_at_sight_and_to_others_left_to_math_verify() -> None:
    assert mathematics.at_sight("7", "") == 0.0
    assert mathematics.at_sight("words", "") is None


def test_math_takes_the_best_of_several_references() -> None:
    reward = make_reward({"type": "math"})
    completions = [r"\boxed{2}"] * 4
    assert reward(completions, target=[["1", "2"], ["1", None], [None], ["words", "3"]]) == [1.0, 0.0, None, 0.0]


def test_math_takes_references_that_are_numbers() -> None:
    assert make_reward({"type": "math"})([r"\boxed{2}", r"\boxed{3}"], target=[2, 2.5]) == [1.0, 0.0]


def test_math_limits_the_time_of_one_pair() -> None:
    reward = make_reward({"type": "math", "timeout": 0.5})
    reward([r"\boxed{1}"], target=["1"])
    completions = [
        r"\boxed{\prod_{k=1}^{100000000} k}",
        r"\boxed{10^{10^{10}} - 1}",
        *(rf"\boxed{{{i}}}" for i in range(40)),
    ]
    scores = reward(completions, target=["7"] * 42)
    assert scores == [0.0, 0.0, *(float(i == 7) for i in range(40))]


FAILING_WORKER = """
    import importlib.util, os, signal, time
    spec = importlib.util.spec_from_file_location("math_worker", WORKER)
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    verify = worker._verify

    def fail(function, gold, completion):
        if "die" in completion:
            os.kill(os.getpid(), signal.SIGKILL)
        if "hang" in completion:  # as a computation that holds the interpreter's lock: signals are not handled
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPROF])
            while True:
                pass
        if "wait" in completion:  # as where other processes have the processor
            time.sleep(1)
        return verify(function, gold, completion)

    worker._verify = fail
    worker.main()
"""


@pytest.mark.parametrize("word", ["hang", "die"])
def test_math_replaces_a_worker_that_hangs_or_dies_and_keeps_the_other_verdicts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, word: str
) -> None:
    program = tmp_path / "worker.py"
    program.write_text(textwrap.dedent(FAILING_WORKER).replace("WORKER", repr(str(mathematics._WORKER))))
    monkeypatch.setattr(mathematics, "_WORKER", program)
    pairs = [("7", rf"\boxed{{{i}}}") for i in range(20)] + [("7", rf"\boxed{{7}} {word}")]
    pool = mathematics._MathPool()
    verdicts = pool.judge(pairs, 0.5)
    assert [verdicts[pair] for pair in pairs] == [float(i == 7) for i in range(20)] + [0.0]
    assert pool.judge(pairs[:3], 0.5) == dict.fromkeys(pairs[:3], 0.0)


def test_math_does_not_count_the_time_for_which_a_worker_is_held_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "worker.py"
    program.write_text(textwrap.dedent(FAILING_WORKER).replace("WORKER", repr(str(mathematics._WORKER))))
    monkeypatch.setattr(mathematics, "_WORKER", program)
    pair = ("7", r"\boxed{7} wait")
    assert mathematics._MathPool().judge([pair], 0.5) == {pair: 1.0}


def test_math_scores_on_after_the_system_killed_its_workers() -> None:
    reward = make_reward({"type": "math"})
    assert reward.score(r"\boxed{\frac{1}{2}}", "0.5") == 1.0
    for worker in mathematics._POOL.idle:
        worker.process.kill()
    assert reward.score(r"\boxed{\frac{1}{2}}", "0.5") == 1.0


def test_math_says_that_its_worker_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(mathematics, "_WORKER", tmp_path / "worker.py")
    monkeypatch.setattr(mathematics, "_POOL", mathematics._MathPool())
    with pytest.raises(RewardError, match="does not start"):
        make_reward({"type": "math"}).score(r"\boxed{\frac{1}{2}}", "0.5")


def test_math_pickles_and_threads_share_its_workers() -> None:
    reward = pickle.loads(pickle.dumps(make_reward({"type": "math", "timeout": 3.0})))
    found: list[list[float | None]] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(reward([rf"\boxed{{{i}.0}}" for i in range(10)], target=["5"] * 10))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[float(i == 5) for i in range(10)]] * 4


SCRIPT = """
    import multiprocessing, sys
    print("script runs")
    from trl_ext.rewards import make_reward, mathematics

    def score():
        print("score", make_reward({"type": "math"})(["\\\\boxed{2.0}"], target=["2"]))
        sys.stdout.flush()

    score()
    DAEMON
    print("end")
"""


def run(tmp_path: Path, extra: str) -> str:
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT).replace("DAEMON", extra))
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=600, check=True)
    # bitsandbytes, where it is installed, says that a kernel is missing
    assert [line for line in done.stderr.splitlines() if not line.startswith("Failed to load CPU gemm")] == []
    return done.stdout


def test_math_works_in_a_script_without_a_main_guard_and_exits_cleanly(tmp_path: Path) -> None:
    assert run(tmp_path, "").split("\n") == ["script runs", "score [1.0]", "end", ""]


def test_math_works_in_a_forked_daemonic_process(tmp_path: Path) -> None:
    """As in data loaders. Forked, it must not take the parent's workers for its own."""
    start = "p = multiprocessing.get_context('fork').Process(target=score, daemon=True); p.start(); p.join(60)"
    out = run(tmp_path, f"sys.stdout.flush(); {start}; assert p.exitcode == 0, p.exitcode")
    assert out.count("score [1.0]") == 2


def test_math_leaves_no_workers_when_the_process_is_killed(tmp_path: Path) -> None:
    code = textwrap.dedent(SCRIPT).replace(
        "DAEMON",
        "print(*(w.process.pid for w in mathematics._POOL.idle), flush=True); import time; time.sleep(60)",
    )
    path = tmp_path / "script.py"
    path.write_text(code)
    process = subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    workers = [int(pid) for pid in lines[2].split()]
    assert workers
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and any(_alive(pid) for pid in workers):
        time.sleep(0.1)
    assert not any(_alive(pid) for pid in workers)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("timeout", [0.0, -1.0, math.inf, math.nan])
def test_math_refuses_a_time_limit_that_is_none(timeout: float) -> None:
    with pytest.raises(ConfigError, match="timeout = "):
        make_reward({"type": "math", "timeout": timeout})
