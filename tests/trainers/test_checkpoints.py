import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.trainers.training import config, make_trainer
from trl_ext import CISPOConfig, CISPOTrainer
from trl_ext.errors import CheckpointError
from trl_ext.trainers.checkpoints import (
    SEAL,
    UNFINISHED,
    digest,
    discard,
    find_damage,
    newest_complete_checkpoint,
    resolve_checkpoint,
    rotate,
    write_seal,
)


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """An output folder with the checkpoints of a run: 2, 4 and 6."""
    args = config(CISPOConfig, max_steps=6, save_strategy="steps", save_steps=2)
    args.output_dir = str(tmp_path_factory.mktemp("out"))
    make_trainer(CISPOTrainer, tiny, args).train()
    return args.output_dir


@pytest.fixture
def out(saved, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(saved, tmp_path / "out")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "empty": (lambda path: path.write_bytes(b""), "has 0 bytes, {size} were written"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "has {less} bytes, {size} were written"),
    "halved": (lambda path: os.truncate(path, path.stat().st_size // 2), "has {half} bytes, {size} were written"),
    "gone": (lambda path: path.unlink(), "is missing"),
    "flipped": (flip_a_bit, "has changed since it was written (its checksum differs)"),
}


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "rollouts_0.pt", "trainer_state.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_to_a_sealed_file_is_found_and_named(out, caplog, file, damage):
    path = out / "checkpoint-6" / file
    size = path.stat().st_size
    do, message = DAMAGES[damage]
    do(path)
    expected = f"{file} {message.format(size=size, less=size - 1, half=size // 2)}"
    assert find_damage(out / "checkpoint-6") == expected
    with caplog.at_level(logging.WARNING):
        assert newest_complete_checkpoint(out) == out / "checkpoint-4"
    assert f"{out / 'checkpoint-6'} is skipped: {expected}" in caplog.text
    with pytest.raises(CheckpointError) as error:
        resolve_checkpoint(str(out / "checkpoint-6"), out)
    assert str(error.value) == f"checkpoint '{out / 'checkpoint-6'}' cannot be resumed from: {expected}"


def test_of_complete_ones_the_highest_step_is_the_newest(out):
    assert newest_complete_checkpoint(out) == out / "checkpoint-6"
    assert newest_complete_checkpoint(out, at_most=5) == out / "checkpoint-4"
    (out / "checkpoint-6").rename(out / "checkpoint-10")
    assert newest_complete_checkpoint(out) == out / "checkpoint-10"  # not by name, where 4 comes last


def test_the_seal_holds_every_file_and_is_all_that_is_left_of_the_writing(saved):
    for checkpoint in Path(saved).glob("checkpoint-*"):
        files = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
        assert set(json.loads((checkpoint / SEAL).read_text())["files"]) == files - {SEAL}
        assert {"model.safetensors", "optimizer.pt", "rollouts_0.pt", "rng_state.pth", "trainer_state.json"} <= files


def test_every_file_is_digested_by_exactly_one_process(saved):
    checkpoint = Path(saved) / "checkpoint-2"
    shares = [digest(checkpoint, index, 3) for index in range(3)]
    assert sum(map(len, shares)) == len(digest(checkpoint))
    assert shares[0] | shares[1] | shares[2] == digest(checkpoint)


def unseal(checkpoint):
    (checkpoint / SEAL).unlink()
    return checkpoint


def test_a_whole_checkpoint_of_plain_trl_is_complete(out):
    assert find_damage(unseal(out / "checkpoint-6")) is None


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("model.safetensors", "halved", "model.safetensors is torn"),
        ("model.safetensors", "gone", "it has no weights"),
        ("optimizer.pt", "halved", "optimizer.pt is torn"),
        ("optimizer.pt", "empty", "optimizer.pt is torn"),
        ("rng_state.pth", "empty", "rng_state.pth is torn"),
        ("trainer_state.json", "halved", "trainer_state.json, which is written last, is missing or torn"),
        ("trainer_state.json", "gone", "trainer_state.json, which is written last, is missing or torn"),
    ],
)
def test_a_torn_checkpoint_of_plain_trl_is_known_by_its_files(out, file, damage, message):
    DAMAGES[damage][0](unseal(out / "checkpoint-6") / file)
    assert find_damage(out / "checkpoint-6") == message
    assert newest_complete_checkpoint(out) == out / "checkpoint-4"


def test_what_several_processes_and_deepspeed_leave_is_looked_at(out):
    checkpoint = unseal(out / "checkpoint-6")
    torch.save({}, checkpoint / "rng_state_1.pth")
    assert find_damage(checkpoint) == "rng_state_0.pth is missing"
    torch.save({}, checkpoint / "rng_state_0.pth")
    assert find_damage(checkpoint) is None
    (checkpoint / "global_step6").mkdir()
    assert find_damage(checkpoint) == "latest, which DeepSpeed writes last, is missing"
    (checkpoint / "latest").write_text("global_step6")
    assert find_damage(checkpoint) is None
    (checkpoint / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'
    )
    assert find_damage(checkpoint) == "model-00001-of-00002.safetensors is missing"
    DAMAGES["halved"][0](checkpoint / "model.safetensors.index.json")
    assert find_damage(checkpoint) == "model.safetensors.index.json is torn"


def test_one_that_says_it_is_not_complete_is_not(out):
    (unseal(out / "checkpoint-6") / UNFINISHED).touch()  # transformers' callback for SIGTERM leaves it too
    assert find_damage(out / "checkpoint-6") == "the run ended while writing it"
    write_seal(out / "checkpoint-6", digest(out / "checkpoint-6"))
    assert find_damage(out / "checkpoint-6") is None


def test_auto_is_a_new_run_where_there_is_nothing_and_true_is_an_error(out, tmp_path):
    assert resolve_checkpoint("auto", out) == str(out / "checkpoint-6")
    assert resolve_checkpoint(True, out) == str(out / "checkpoint-6")
    assert resolve_checkpoint(None, out) is None
    for empty in (tmp_path, tmp_path / "not there"):
        assert resolve_checkpoint("auto", empty) is None
        with pytest.raises(
            CheckpointError, match=r"no complete checkpoint in '.*': give resume_from_checkpoint 'auto'"
        ):
            resolve_checkpoint(True, empty)


def test_a_checkpoint_whose_deletion_does_not_end_has_lost_its_name_and_goes_later(out, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        discard(out / "checkpoint-2")
    assert not (out / "checkpoint-2").exists()
    assert (out / "deleting-checkpoint-2").is_dir()
    rotate(out, None, set())
    assert not (out / "deleting-checkpoint-2").exists()


def test_what_was_found_complete_is_not_read_again(out, monkeypatch):
    for named in ("auto", str(out / "checkpoint-6")):
        found = resolve_checkpoint(named, out)
        with monkeypatch.context() as patch:
            patch.setattr("trl_ext.trainers.checkpoints.find_damage", lambda checkpoint: pytest.fail("it was read"))
            assert resolve_checkpoint(found, out) == found == str(out / "checkpoint-6")


def test_rotation_deletes_the_oldest_and_torn_ones_first_and_keeps_what_it_is_told(out):
    def left():
        return sorted(path.name for path in out.glob("checkpoint-*"))

    (unseal(out / "checkpoint-4") / UNFINISHED).touch()
    rotate(out, None, {out / "checkpoint-6"})
    rotate(out, 3, {out / "checkpoint-6"})
    assert left() == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    rotate(out, 2, {out / "checkpoint-6"})
    assert left() == ["checkpoint-2", "checkpoint-6"]
    rotate(out, 1, {out / "checkpoint-6", out / "checkpoint-2"})
    assert left() == ["checkpoint-2", "checkpoint-6"]
    rotate(out, 1, {out / "checkpoint-2"})
    assert left() == ["checkpoint-2"]
    assert not list(out.glob("deleting-*"))
