import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from transformers.trainer_jit_checkpoint import JITCheckpointCallback

from tests.trainers.training import config, make_trainer, weights
from trl_ext import CISPOConfig, CISPOTrainer, PPOConfig, PPOTrainer
from trl_ext.errors import CheckpointError, ConfigError
from trl_ext.trainers.checkpoints import SEAL, find_damage
from trl_ext.trainers.preemption import PreemptionCallback

EVERY_STEP = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}


def kept(trainer):
    return sorted(path.name for path in Path(trainer.args.output_dir).glob("*checkpoint-*"))


def scripted(scores):
    """A reward whose mean in optimizer step i is `scores[i]`."""

    def reward(completions, trainer_state, **columns):
        return [scores[trainer_state.global_step] + (-1) ** i * 0.1 for i in range(len(completions))]

    return reward


@pytest.mark.parametrize(
    ("options", "best"),
    [({}, "checkpoint-2"), ({"greater_is_better": False}, "checkpoint-1")],
)
def test_the_best_by_a_metric_of_the_training_logs_is_kept_beside_the_newest(tiny, options, best):
    args = config(CISPOConfig, **EVERY_STEP, max_steps=4, metric_for_best_model="reward", **options)
    trainer = make_trainer(CISPOTrainer, tiny, args, reward_funcs=scripted([0.1, 0.9, 0.5, 0.3]))
    trainer.train()
    assert kept(trainer) == [best, "checkpoint-4"]
    assert Path(trainer.state.best_model_checkpoint).name == best
    assert trainer.state.best_metric == pytest.approx(0.9 if best == "checkpoint-2" else 0.1, abs=1e-6)


def test_the_best_is_remembered_over_a_resume_and_counts_the_mean_since_the_last_checkpoint(tiny):
    options = {**EVERY_STEP, "save_steps": 2, "metric_for_best_model": "rewards/reward/mean"}
    # means of the pairs: 0.5, 0.4, 0.45; the last step alone would say checkpoint-4
    scores = [0.9, 0.1, 0.0, 0.8, 0.2, 0.7]
    first = make_trainer(CISPOTrainer, tiny, config(CISPOConfig, max_steps=4, **options), reward_funcs=scripted(scores))
    first.train()
    assert kept(first) == ["checkpoint-2", "checkpoint-4"]
    args = config(CISPOConfig, max_steps=6, **options)
    args.output_dir = first.args.output_dir
    second = make_trainer(CISPOTrainer, tiny, args, reward_funcs=scripted(scores))
    second.train("auto")
    assert kept(second) == ["checkpoint-2", "checkpoint-6"]
    assert second.state.best_metric == pytest.approx(0.5, abs=1e-6)


def test_a_metric_that_is_not_logged_gives_a_warning_with_the_close_ones_and_no_best(tiny, caplog):
    args = config(CISPOConfig, **EVERY_STEP, max_steps=1, metric_for_best_model="rewards")
    trainer = make_trainer(CISPOTrainer, tiny, args)
    trainer.train()
    assert "metric_for_best_model = 'rewards' was not logged since step 0" in caplog.text
    assert "is it 'reward'" in caplog.text
    assert trainer.state.best_model_checkpoint is None


@pytest.fixture
def interrupted(tiny):
    """Trains a PPO run of 4 steps whose second checkpoint meets a fault, and gives (trainer, error)."""

    def run(fault, output_dir=None):
        args = config(PPOConfig, **EVERY_STEP, max_steps=4, num_ppo_epochs=2)
        args.output_dir = output_dir or args.output_dir
        trainer = make_trainer(PPOTrainer, tiny, args)
        save, calls = trainer._save_optimizer_and_scheduler, []

        def save_with_a_fault(output_dir):
            calls.append(output_dir)
            if len(calls) == 2:
                fault(output_dir)
            save(output_dir)

        trainer._save_optimizer_and_scheduler = save_with_a_fault
        with pytest.raises(CheckpointError) as error:
            trainer.train()
        return trainer, str(error.value)

    return run


def assert_the_one_before_is_intact(trainer, tiny):
    out = trainer.args.output_dir
    assert find_damage(f"{out}/checkpoint-1") is None
    args = config(PPOConfig, **EVERY_STEP, max_steps=4, num_ppo_epochs=2)
    args.output_dir = out
    resumed = make_trainer(PPOTrainer, tiny, args)
    resumed.train("auto")
    args = config(PPOConfig, max_steps=4, num_ppo_epochs=2)
    whole = make_trainer(PPOTrainer, tiny, args)
    whole.train()
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert kept(resumed) == ["checkpoint-4"]


def test_a_disk_that_fills_up_while_saving_is_one_line_and_the_checkpoint_before_is_intact(interrupted, tiny):
    """A limit on the size of files makes the system refuse the bytes after it, as a full disk does."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fault(folder):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, old[1]))

    try:
        trainer, message = interrupted(fault)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    out = trainer.args.output_dir
    assert message.startswith(f"{out}/checkpoint-2 cannot be written: torch.save could not write a whole file (")
    assert message.endswith(f"MiB are free on the disk); {out}/checkpoint-1 is intact")
    assert "\n" not in message
    assert kept(trainer) == ["checkpoint-1"]
    assert_the_one_before_is_intact(trainer, tiny)


@pytest.fixture
def mounted(tmp_path):
    """Mounts a disk of so many bytes, where that is allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(size):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("only root may mount a disk")
        return str(disk)

    yield mount
    if disk.is_mount():
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("weights_too", [True, False])
def test_a_real_disk_that_is_full_is_one_line(tiny, mounted, weights_too):
    args = config(CISPOConfig, **EVERY_STEP, max_steps=1)
    disk = args.output_dir = mounted(100_000 if weights_too else 300_000)  # the model has 133 kB, its optimizer 266 kB
    with pytest.raises(CheckpointError) as error:
        make_trainer(CISPOTrainer, tiny, args).train()
    assert str(error.value).startswith(f"{disk}/checkpoint-1 cannot be written: ")
    assert ("No space left on device" if weights_too else "torch.save could not write") in str(error.value)
    assert str(error.value).endswith("; there is none before it")


def test_a_real_disk_that_becomes_read_only_is_one_line_and_the_checkpoint_before_is_intact(interrupted, mounted, tiny):
    disk = mounted(10_000_000)

    def fault(folder):
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)

    trainer, message = interrupted(fault, disk)
    assert message == f"{disk}/checkpoint-2 cannot be written: Read-only file system; {disk}/checkpoint-1 is intact"
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert_the_one_before_is_intact(trainer, tiny)


def test_a_folder_that_becomes_read_only_is_one_line(interrupted, tiny):
    def fault(folder):
        raise OSError(30, "Read-only file system", f"{folder}/optimizer.pt")

    trainer, message = interrupted(fault)
    out = trainer.args.output_dir
    assert message == (
        f"{out}/checkpoint-2 cannot be written: Read-only file system ({out}/checkpoint-2/optimizer.pt); "
        f"{out}/checkpoint-1 is intact"
    )


def test_an_error_that_is_not_the_disks_stays_what_it_is(tiny):
    trainer = make_trainer(CISPOTrainer, tiny, config(CISPOConfig, **EVERY_STEP, max_steps=1))

    def broken(output_dir):
        raise RuntimeError("something else")

    trainer._save_optimizer_and_scheduler = broken
    with pytest.raises(RuntimeError, match=r"^something else$"):
        trainer.train()


def test_a_new_run_in_a_folder_with_checkpoints_is_told_so(tiny, caplog):
    args = config(CISPOConfig, **EVERY_STEP, max_steps=1)
    make_trainer(CISPOTrainer, tiny, args).train()
    assert "of another run" not in caplog.text
    make_trainer(CISPOTrainer, tiny, args).train()
    assert f"output_dir '{args.output_dir}' has checkpoints of another run" in caplog.text


def test_what_callbacks_write_is_under_the_seal(tiny):
    from trl_ext.rewards import RewardStateCallback, make_reward

    reward = make_reward({"type": "length", "max_tokens": 6, "postprocess": [{"type": "ema_normalize"}]})
    args = config(CISPOConfig, **EVERY_STEP, max_steps=1)
    trainer = make_trainer(CISPOTrainer, tiny, args, reward_funcs=reward, callbacks=[RewardStateCallback([reward])])
    trainer.train()
    assert "reward_state.json" in (Path(args.output_dir) / "checkpoint-1" / SEAL).read_text()


def sigterm_in_step(trainer, *steps):
    step, calls = trainer.training_step, []

    def training_step(*args, **kwargs):
        calls.append(None)
        for _ in range(steps.count(len(calls))):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args, **kwargs)

    trainer.training_step = training_step


def test_a_sigterm_ends_the_run_with_a_checkpoint_after_the_step_and_gives_the_signal_back(tiny):
    before = signal.getsignal(signal.SIGTERM)
    args = config(CISPOConfig, max_steps=4, enable_jit_checkpoint=True)  # no save_strategy
    trainer = make_trainer(CISPOTrainer, tiny, args)
    assert trainer.pop_callback(JITCheckpointCallback) is None
    sigterm_in_step(trainer, 2)
    with pytest.raises(SystemExit) as stop:
        trainer.train()
    assert stop.value.code == 0
    assert kept(trainer) == ["checkpoint-2"]
    assert find_damage(f"{args.output_dir}/checkpoint-2") is None
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_training_that_fails_gives_the_signal_back_too(tiny):
    before = signal.getsignal(signal.SIGTERM)

    def broken(completions, **columns):
        raise KeyError("no such thing")

    args = config(CISPOConfig, max_steps=1, enable_jit_checkpoint=True)
    with pytest.raises(KeyError):
        make_trainer(CISPOTrainer, tiny, args, reward_funcs=broken).train()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_sigterm_in_the_last_step_ends_the_run_as_ever(tiny):
    args = config(CISPOConfig, max_steps=2, enable_jit_checkpoint=True)
    trainer = make_trainer(CISPOTrainer, tiny, args)
    sigterm_in_step(trainer, 2)
    assert trainer.train().global_step == 2


def test_a_second_sigterm_ends_the_process_at_once(monkeypatch):
    sent = []
    callback = PreemptionCallback()
    callback.on_train_begin(None, None, None)
    try:
        callback._ask()
        monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((number, signal.getsignal(number))))
        callback._ask()
    finally:
        callback.on_train_end(None, None, None)
    assert sent == [(signal.SIGTERM, signal.SIG_DFL)]


def test_a_reward_that_raises_on_the_only_process_keeps_its_error_and_gets_its_name(tiny):
    def broken(completions, **columns):
        raise KeyError("no such thing")

    trainer = make_trainer(CISPOTrainer, tiny, config(CISPOConfig, max_steps=1), reward_funcs=broken)
    with pytest.raises(KeyError) as error:
        trainer.train()
    assert error.value.__notes__ == ["(reward 'broken', process 0)"]
    assert trainer.reward_funcs == [broken]


def test_rewards_of_minus_infinity_are_no_failure(tiny):
    """TRL's to deal with; alone on one process they are not even looked at."""
    trainer = make_trainer(CISPOTrainer, tiny, config(CISPOConfig, max_steps=1))
    trainer.reward_funcs = [lambda completions, **columns: [-torch.inf] * len(completions)]
    rewards = trainer._calculate_rewards([{"prompt": "1+1="}] * 2, ["1+1="] * 2, ["2", "3"], [[5], [6]])
    assert rewards.tolist() == [[-torch.inf], [-torch.inf]]


def test_a_bad_reward_timeout_is_refused():
    with pytest.raises(ConfigError, match=r"reward_timeout = 0\.0: must be greater than 0, or unset"):
        config(CISPOConfig, reward_timeout=0.0)
