"""Which checkpoints of a run are complete: by a seal that is written last, and by what is there where it has none."""

import contextlib
import json
import logging
import os
import re
import shutil
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from tqdm import tqdm
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from trl_ext.errors import CheckpointError

SEAL = "complete.json"
UNFINISHED = "checkpoint-is-incomplete.txt"  # transformers' own name for it, which it does not push to the Hub
_DOOMED = "deleting-"
_WEIGHTS = ("*.safetensors", "*.bin", "pytorch_model_fsdp*", "global_step*", "*/adapter_model.*")
_CHUNK = 2**24

logger = logging.getLogger(__name__)


class _Checked(str):
    """A path that `resolve_checkpoint` gave: its files, which may be many GB, are not read again."""


def newest_complete_checkpoint(output_dir: str | Path, at_most: int | None = None) -> Path | None:
    """The checkpoint of the highest step (`at_most` this one) that is complete; None if there is none.

    One that is not, because its run ended while it was written or because a file changed since, is passed over with a
    warning that says why. Looks at this machine's files only: on several processes, call it on one of each machine.
    """
    for step, checkpoint in sorted(_checkpoints(output_dir), reverse=True):
        if at_most is not None and step > at_most:
            continue
        damage = find_damage(checkpoint)
        if damage is None:
            return checkpoint
        logger.warning("%s is skipped: %s", checkpoint, damage)
    return None


def find_damage(checkpoint: str | Path) -> str | None:
    """Why a run cannot go on from a checkpoint; None if it can.

    With the seal of our trainers every file is held to its size and its CRC-32. Without one (plain TRL) the files must
    be whole as far as their formats tell, `trainer_state.json`, which transformers writes last, among them.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        return "there is no such folder"
    if (checkpoint / SEAL).is_file():
        return _damage_by_seal(checkpoint)
    if (checkpoint / UNFINISHED).exists():
        return "the run ended while writing it"
    return _damage_by_format(checkpoint)


def resolve_checkpoint(resume: str | bool | None, output_dir: str | Path) -> str | None:
    """What `resume_from_checkpoint` means, the same on all processes, each of which must call it.

    `"auto"`: the newest complete checkpoint, or None, a new run, if there is none. True: that one, which must be there.
    A path: that checkpoint, which must be complete.

    Raises:
        CheckpointError: there is no complete checkpoint, or the one that was named is not; names the file.
    """
    if resume is None or resume is False:
        return None
    if isinstance(resume, _Checked):
        return resume
    if resume is True or resume == "auto":
        found = _newest_on_all_machines(output_dir)
        if found is None and resume is True:
            raise CheckpointError(
                f"no complete checkpoint in {str(output_dir)!r}: give resume_from_checkpoint 'auto' to start anew then"
            )
        return found and _Checked(found)
    looks = PartialState().is_local_main_process
    damages: list[str | None] = gather_object([find_damage(resume)] if looks else [])
    for damage in damages:
        if damage is not None:
            raise CheckpointError(f"checkpoint {resume!r} cannot be resumed from: {damage}")
    return _Checked(resume)


def _newest_on_all_machines(output_dir: str | Path) -> str | None:
    """The newest that each machine has whole: they may write to disks of their own."""
    at_most = None
    while True:
        newest = newest_complete_checkpoint(output_dir, at_most) if PartialState().is_local_main_process else None
        steps: list[int | None]
        steps = gather_object([newest and _step(newest)] if PartialState().is_local_main_process else [])
        if None in steps:
            return None
        at_most = min(step for step in steps if step is not None)
        if set(steps) == {at_most}:
            return str(Path(output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{at_most}")


def begin(checkpoint: Path) -> None:
    """Make an empty folder that says that it is not complete; one of an earlier run that has its name goes."""
    if checkpoint.exists():
        discard(checkpoint)
    checkpoint.mkdir(parents=True)
    (checkpoint / UNFINISHED).write_text("A checkpoint is being written here, or its run ended while it was.\n")


def digest(checkpoint: Path, index: int = 0, count: int = 1) -> dict[str, list[int]]:
    """Size and CRC-32 of the files of a checkpoint, once they are on the disk: part `index` of `count` of them."""
    digests = {}
    for path in sorted(checkpoint.rglob("*")):
        name = path.relative_to(checkpoint).as_posix()
        if path.is_file() and name not in (SEAL, UNFINISHED) and zlib.crc32(name.encode()) % count == index:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            digests[name] = [path.stat().st_size, _checksum(path)]
    return digests


def write_seal(checkpoint: Path, digests: dict[str, list[int]]) -> None:
    """Declare a checkpoint complete, as one step: a reader finds the whole seal or none."""
    draft = checkpoint / f"{SEAL}.draft"
    with draft.open("w") as file:
        json.dump({"written": time.time(), "files": digests}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(checkpoint / SEAL)
    for folder in (*(path for path in checkpoint.rglob("*") if path.is_dir()), checkpoint, checkpoint.parent):
        _sync_folder(folder)
    (checkpoint / UNFINISHED).unlink(missing_ok=True)


def rotate(output_dir: Path, limit: int | None, keep: set[Path]) -> None:
    """Delete the oldest checkpoints until `limit` are left. Torn ones go first, those in `keep` stay."""
    for leftover in output_dir.glob(f"{_DOOMED}{PREFIX_CHECKPOINT_DIR}-*"):  # of a run that ended while deleting
        shutil.rmtree(leftover, ignore_errors=True)
    if limit is None or limit <= 0:
        return
    keep = {path.resolve() for path in keep}
    found = [path for _, path in sorted(_checkpoints(output_dir))]
    others = [path for path in found if path.resolve() not in keep]
    others.sort(key=lambda path: ((path / SEAL).is_file() or not (path / UNFINISHED).exists(), path.stat().st_mtime))
    for path in others[: max(len(found) - max(limit, len(keep)), 0)]:
        try:
            discard(path)
        except OSError as error:  # no reason to end a run whose checkpoint is written
            logger.warning("%s cannot be deleted: %s", path, error.strerror)


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint. It loses its name first, so that half of it is never taken for a checkpoint."""
    doomed = checkpoint.with_name(_DOOMED + checkpoint.name)
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _checkpoints(output_dir: str | Path) -> list[tuple[int, Path]]:
    found = Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    return [(_step(path), path) for path in found if re.fullmatch(r".*-\d+", path.name) and path.is_dir()]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _damage_by_seal(checkpoint: Path) -> str | None:
    try:
        files: dict[str, list[int]] = json.loads((checkpoint / SEAL).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"{SEAL} cannot be read ({error})"
    for name, (size, _) in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if (found := path.stat().st_size) != size:
            return f"{name} has {found} bytes, {size} were written"
    for name in tqdm(files, desc=f"Checking {checkpoint.name}", unit="file", disable=None, leave=False):
        if _checksum(checkpoint / name) != files[name][1]:
            return f"{name} has changed since it was written (its checksum differs)"
    return None


def _damage_by_format(checkpoint: Path) -> str | None:
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
    except (OSError, ValueError):
        return f"{TRAINER_STATE_NAME}, which is written last, is missing or torn"
    if not any(path for pattern in _WEIGHTS for path in checkpoint.glob(pattern) if path.name != "training_args.bin"):
        return "it has no weights"
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        name = path.relative_to(checkpoint).as_posix()
        if path.suffix == ".safetensors" and not _is_whole(path):
            return f"{name} is torn"
        if path.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(path):
            return f"{name} is torn"
        if name.endswith(".index.json"):
            try:
                shards: dict[str, Any] = json.loads(path.read_text()).get("weight_map", {})
            except ValueError:
                return f"{name} is torn"
            for shard in sorted(set(shards.values())):
                if not (path.parent / shard).is_file():
                    return f"{shard} is missing"
    if any(checkpoint.glob("global_step*")) and not (checkpoint / "latest").is_file():
        return "latest, which DeepSpeed writes last, is missing"
    processes = len(list(checkpoint.glob("rng_state_*.pth")))
    for process in range(processes):
        if not (checkpoint / f"rng_state_{process}.pth").is_file():
            return f"rng_state_{process}.pth is missing"
    return None


def _is_whole(path: Path) -> bool:
    """Whether the file is as long as its header says."""
    try:
        with safe_open(path, "pt"):
            return True
    except (SafetensorError, OSError):
        return False


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some network file systems cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
