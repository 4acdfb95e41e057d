import math
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from tests.rewards.verifying import HOSTILE, each
from trl_ext.errors import ConfigError
from trl_ext.rewards import make_reward, mathematics

# numeric


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
    (r"\boxed{\text{yes}}", r"$\text{yes}$"),
    (r"\boxed{\frac{1}{", "3"),
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


def test_math_reads_the_words_that_its_shortcut_looks_for() -> None:
    """A text without them is not sent to math-verify: its own patterns must need them."""
    from math_verify.parser import LatexExtractionConfig, lazy_latex_regex

    config = LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)
    patterns = [pattern.pattern for pattern, _ in lazy_latex_regex(config)]
    for pattern in patterns:
        assert pattern.startswith(("(?i:final answer", "(?i:answer)", "(?P<first_latexBoxed>\\\\boxed{")) or (
            "boxed" in pattern
        ), pattern
    text = "so $x = 4$ and \\[y = 5\\] and \\frac{1}{2} and $$z$$, 42 [1] ans\u0142wer boxed{3}"
    assert not mathematics._MAY_ANSWER.search(text)
    assert not any(re.search(pattern, text, re.DOTALL) for pattern in patterns)


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


def _hang(gold: str, completion: str) -> None:
    """Stands for a computation that holds the interpreter's lock: signals are blocked."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    time.sleep(60)


def _hang_or_judge(pairs: list[tuple[str, str]], timeout: float) -> list[float | None]:
    if any("hang" in completion for _, completion in pairs):
        watchdog = mathematics._Watchdog(timeout)
        mathematics._limited(lambda: _hang("", ""), watchdog, 0.0)
    if any("die" in completion for _, completion in pairs):
        os.kill(os.getpid(), signal.SIGKILL)
    return mathematics._judge_chunk(pairs, timeout)


@pytest.mark.parametrize("word", ["hang", "die"])
def test_math_replaces_a_worker_that_hangs_or_dies_and_keeps_the_other_verdicts(
    monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setattr(mathematics, "_judge_chunk", _hang_or_judge)
    pairs = [("7", rf"\boxed{{{i}}}") for i in range(20)] + [("7", rf"\boxed{{7}} {word}")]
    verdicts = mathematics._POOL.judge(pairs, 0.5)
    assert [verdicts[pair] for pair in pairs] == [float(i == 7) for i in range(20)] + [0.0]
    monkeypatch.undo()
    assert make_reward({"type": "math"}).score(r"\boxed{7}", "7") == 1.0


def test_math_pickles_and_threads_share_its_workers() -> None:
    reward = pickle.loads(pickle.dumps(make_reward({"type": "math", "timeout": 3.0})))
    found: list[list[float | None]] = []
    threads = [
        threading.Thread(target=lambda: found.append(reward([rf"\boxed{{{i}}}" for i in range(10)], target=["5"] * 10)))
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
    import trl_ext.rewards.mathematics

    def score():
        print("score", make_reward({"type": "math"})(["\\\\boxed{2}"], target=["2"]))
        sys.stdout.flush()

    score()
    DAEMON
    print("end")
"""


def run(tmp_path: Path, extra: str) -> str:
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT).replace("DAEMON", extra))
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr == ""
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
        "print(*trl_ext.rewards.mathematics._POOL._executor._processes, flush=True); import time; time.sleep(60)",
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
    deadline = time.time() + 20
    while time.time() < deadline and any(_alive(pid) for pid in workers):
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


def test_no_process_of_multiprocessing_is_marked_daemonic_by_the_pool() -> None:
    main = sys.modules["__main__"]
    make_reward({"type": "math"}).score(r"\boxed{7}", "7")
    assert sys.modules["__main__"] is main
    assert not multiprocessing.current_process().daemon
