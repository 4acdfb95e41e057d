import ast
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from tests.rewards.fake_scorers.faults import overlap
from trl_ext.errors import ConfigError, RewardError
from trl_ext.rewards import external_process, make_reward
from trl_ext.rewards.external_process import ExternalProcess

GOLD = "the cat sat"
ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["comet", "bleurt"])
def process(request, fake_python, checkpoint, recorded):
    made = ExternalProcess(request.param, fake_python, str(checkpoint), "", "pip install it")
    yield made
    made.stop()


def ask(process, *completions, timeout=60.0):
    return process.score([(completion, GOLD, "") for completion in completions], 16, timeout)


def runs(pid):
    """Whether a process is there, and not only waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_for(condition):
    for _ in range(600):
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_what_runs_in_the_other_environment_is_no_newer_than_its_python_may_be():
    ast.parse(external_process._WORKER.read_text(), feature_version=(3, 8))  # the oldest that unbabel-comet takes


def test_one_process_serves_all_batches(process, recorded):
    assert ask(process, GOLD, "the") == [1.0, overlap("the", GOLD)]
    assert ask(process, "cat") == [overlap("cat", GOLD)]
    assert len(recorded("load")) == 1
    assert len({call["pid"] for call in recorded("score")}) == 1


def test_one_process_serves_all_rewards_with_the_same_interpreter_and_model(
    fake_python, checkpoint, tmp_path, recorded
):
    other = tmp_path / "other"
    other.symlink_to(checkpoint)
    for model, count in ((checkpoint, 1), (checkpoint, 1), (other, 2)):
        reward = make_reward({"type": "bleurt", "python": fake_python, "model": str(model), "batch_size": 1 + count})
        assert reward([GOLD], target=[GOLD]) == [1.0]
        assert len(recorded("load")) == count


def test_a_batch_of_a_thousand_long_texts_neither_blocks_nor_loses_a_score(process):
    texts = [f"{number} " + GOLD * 1000 for number in range(1000)]
    assert min(map(len, texts)) > 10_000
    assert ask(process, "shout", *texts)[1:] == [overlap(text, GOLD) for text in texts]


def test_what_the_library_prints_is_no_reply(process):
    for _ in range(2):
        assert ask(process, "shout", GOLD) == [overlap("shout", GOLD), 1.0]
    assert len(process._printed) <= external_process._TAIL


def test_any_character_arrives_as_it_was(process):
    texts = ["\x00", "\n", '"', "\u2028", "مرحبا ‏", "🙂", "\x1b[0m", " "]
    scores = process.score([(text, text, "") for text in texts], 16, 60.0)
    assert scores == [1.0] * len(texts)


def test_a_process_that_dies_over_a_batch_is_started_once_more(process, tmp_path, recorded):
    assert ask(process, f"die once {tmp_path}/mark", GOLD)[1] == 1.0
    assert len(recorded("load")) == 2
    assert ask(process, GOLD) == [1.0]
    assert len(recorded("load")) == 2


def test_a_process_that_died_between_batches_is_started_anew(process, recorded):
    ask(process, GOLD)
    os.kill(recorded("load")[0]["pid"], signal.SIGKILL)
    assert wait_for(lambda: not runs(recorded("load")[0]["pid"]))
    assert ask(process, GOLD) == [1.0]
    assert len(recorded("load")) == 2


def test_a_batch_that_kills_it_twice_raises_with_its_last_words(process, recorded):
    with pytest.raises(ChildProcessError) as caught:
        ask(process, GOLD, "die")
    assert "the last words | (exit status 7)" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(recorded("load")) == 2
    assert ask(process, GOLD) == [1.0]


def test_a_batch_that_raises_is_told_and_the_process_kept(process, recorded):
    with pytest.raises(ChildProcessError, match="ValueError: the library cannot"):
        ask(process, GOLD, "raise")
    assert ask(process, GOLD) == [1.0]
    assert len(recorded("load")) == 1


def test_a_wrong_number_of_scores_is_an_error(process):
    with pytest.raises(ChildProcessError, match="1 scores for 2 texts"):
        ask(process, GOLD, "lose one")
    assert ask(process, GOLD) == [1.0]


@pytest.mark.parametrize("text", ["hang", "hang with the lock"])
def test_a_process_that_hangs_is_killed(process, text, recorded):
    ask(process, GOLD)
    with pytest.raises(TimeoutError, match=r"no reply in 0.3 s"):
        ask(process, text, timeout=0.3)
    assert not runs(recorded("load")[0]["pid"])
    assert ask(process, GOLD) == [1.0]


def test_a_process_that_does_not_read_is_killed(process, recorded):
    ask(process, GOLD)
    os.kill(recorded("load")[0]["pid"], signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        ask(process, "x" * 10_000_000, timeout=0.3)
    assert not runs(recorded("load")[0]["pid"])


def test_a_model_that_does_not_come_is_not_waited_for_forever(process, monkeypatch):
    monkeypatch.setattr(external_process, "START_TIMEOUT", 0.0)
    with pytest.raises(TimeoutError, match="no reply in 0 s"):
        ask(process, GOLD)


def test_an_interrupted_batch_leaves_no_reply_to_the_next(process, recorded):
    def interrupt(*_):
        raise KeyboardInterrupt

    def send_when_it_hangs():
        if wait_for(lambda: recorded("score")):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, interrupt)
    thread = threading.Thread(target=send_when_it_hangs)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            ask(process, "hang")
    finally:
        thread.join()
        signal.signal(signal.SIGALRM, before)
    assert ask(process, "cat") == [overlap("cat", GOLD)]


def test_errors_count_against_the_budget_of_a_reward_and_never_score(fake_python, checkpoint, recorded):
    spec = {"type": "bleurt", "python": fake_python, "model": str(checkpoint)}
    for text, limit, reason in (
        ("hang", 0.3, "TimeoutError: bleurt: no reply"),
        ("die", 60.0, "ChildProcessError: bleurt: its process"),
    ):
        with pytest.raises(RewardError, match=reason):
            make_reward({**spec, "timeout": limit})([text], target=[GOLD])
        forgiving = make_reward({**spec, "timeout": limit, "on_error": "none", "max_errors": 1})
        assert forgiving([text], target=[GOLD]) == [None]
        forgiving._scorer.timeout = 60.0
        assert forgiving([GOLD], target=[GOLD]) == [1.0]


def test_threads_take_turns(process):
    results = {}

    def work(text):
        results[text] = [ask(process, text, GOLD) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(text,)) for text in ("the", "cat", "sat")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {text: [[overlap(text, GOLD), 1.0]] * 20 for text in ("the", "cat", "sat")}


def test_an_interpreter_that_is_none_is_an_error_of_one_line(checkpoint, tmp_path):
    false = ExternalProcess("bleurt", "/bin/false", str(checkpoint), "", "pip install it")
    with pytest.raises(RewardError, match=r"/bin/false ended before .*\(exit status 1\).*pip install it"):
        ask(false, GOLD)
    text = tmp_path / "text"
    text.write_text("no program")
    text.chmod(0o755)
    with pytest.raises(RewardError, match="text cannot be run: Exec format error"):
        ask(ExternalProcess("bleurt", str(text), str(checkpoint), "", "pip install it"), GOLD)


def test_it_sees_neither_our_packages_nor_our_distributed_run(process, recorded, monkeypatch):
    ours = {"PYTHONPATH": str(ROOT), "RANK": "3", "LOCAL_WORLD_SIZE": "8", "MASTER_PORT": "1", "SLURM_JOB_ID": "5",
            "TORCHELASTIC_RUN_ID": "x", "ACCELERATE_USE_FSDP": "true"}  # fmt: skip
    for name, value in {**ours, "HF_HOME": "/somewhere", "CUDA_VISIBLE_DEVICES": "3"}.items():
        monkeypatch.setenv(name, value)
    ask(process, GOLD)
    (seen,) = (event["environment"] for event in recorded("import"))
    assert not set(ours) & set(seen)
    assert (seen["HF_HOME"], seen["CUDA_VISIBLE_DEVICES"]) == ("/somewhere", "")


@pytest.mark.parametrize(
    ("listed", "device", "gpus"),
    [(None, "cuda", "0"), (None, "cuda:3", "3"), ("4,5", "cuda:1", "5"), ("GPU-a, GPU-b", "cuda:1", "GPU-b"),
     ("4,5", "cpu", ""), ("4,5", "mps", "")],
)  # fmt: skip
def test_a_device_is_counted_as_this_process_counts(listed, device, gpus, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert external_process._visible_gpus(device) == gpus


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(ConfigError, match="device = 'cuda:2': no such GPU in CUDA_VISIBLE_DEVICES=4,5"):
        external_process._visible_gpus("cuda:2")


def test_without_a_device_it_takes_that_of_this_process(monkeypatch):
    import accelerate
    import torch

    assert external_process._visible_gpus(None) == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    monkeypatch.setattr(accelerate.PartialState(), "device", torch.device("cuda", 1))
    assert external_process._visible_gpus(None) == "7"


def test_comet_uses_the_gpu_that_it_is_given(fake_python, checkpoint, recorded, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    spec = {"type": "comet", "python": fake_python, "model": str(checkpoint), "device": "cuda:1"}
    make_reward(spec)([GOLD], target=[GOLD], prompts=["x"])
    assert recorded("import")[0]["environment"]["CUDA_VISIBLE_DEVICES"] == "5"
    assert recorded("score")[0]["gpus"] == 1


def in_fork(work):
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    return child


def test_a_fork_has_a_process_of_its_own(fake_python, checkpoint, recorded):
    reward = make_reward({"type": "bleurt", "python": fake_python, "model": str(checkpoint)})
    reward([GOLD], target=[GOLD])
    child = in_fork(lambda: sys.exit(0 if reward(["cat"], target=["cat"]) == [1.0] else 9))
    child.join(60)
    assert child.exitcode == 0
    first, second = (load["pid"] for load in recorded("load"))
    assert wait_for(lambda: not runs(second))
    assert reward([GOLD], target=[GOLD]) == [1.0]
    assert [call["pid"] for call in recorded("score")] == [first, second, first]


# With the lock of its interpreter held a process cannot see that its parent is gone, and ends by its own limit
@pytest.mark.parametrize(("text", "limit"), [(GOLD, 600.0), ("hang", 600.0), ("hang with the lock", 1.0)])
def test_a_killed_parent_leaves_no_process(fake_python, checkpoint, recorded, text, limit):
    spec = {"type": "bleurt", "python": fake_python, "model": str(checkpoint), "timeout": limit}

    def work():
        make_reward(spec)([text], target=[GOLD])
        time.sleep(600)

    parent = in_fork(work)
    assert wait_for(lambda: recorded("score"))
    pid = recorded("score")[0]["pid"]
    parent.kill()
    parent.join()
    assert wait_for(lambda: not runs(pid))


def test_a_forked_sibling_does_not_keep_the_process_alive(fake_python, checkpoint, recorded, tmp_path):
    reward = make_reward({"type": "bleurt", "python": fake_python, "model": str(checkpoint)})
    sibling = tmp_path / "sibling"

    def work():
        threading.Thread(target=reward, args=(["hang"],), kwargs={"target": [GOLD]}, daemon=True).start()
        assert wait_for(lambda: recorded("score"))
        if os.fork() == 0:  # in the middle of the thread's batch
            sibling.write_text(str(os.getpid()))
        time.sleep(600)

    parent = in_fork(work)
    assert wait_for(lambda: sibling.exists() and sibling.read_text())
    parent.kill()
    parent.join()
    try:
        assert wait_for(lambda: not runs(recorded("load")[0]["pid"]))
        assert runs(int(sibling.read_text()))
    finally:
        os.kill(int(sibling.read_text()), signal.SIGKILL)


def test_the_end_of_python_ends_the_process_though_it_hangs(fake_python, checkpoint, recorded):
    script = f"""
        import threading, time
        from trl_ext import make_reward

        reward = make_reward({{"type": "bleurt", "python": {fake_python!r}, "model": {str(checkpoint)!r}}})
        work = lambda: reward(["hang with the lock"], target=["x"])
        threading.Thread(target=work, daemon=True).start()
        while '"event": "score"' not in open({os.environ["FAKE_SCORER_RECORD"]!r}).read():
            time.sleep(0.05)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, cwd=ROOT, timeout=600)
    assert wait_for(lambda: not runs(recorded("score")[0]["pid"]))
