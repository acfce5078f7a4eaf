"""Interrupted training: where its state stands, which of it is complete, and what a full disk looks like."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from shallow_signals.files import InputError, replacing_folder, write_json

COMPLETE = "complete.json"
FINISHED = "finished.json"
MODEL = "model"


class MarkComplete(TrainerCallback):  # type: ignore[misc]
    """Writes into each saved state, last of all, the sizes of its files and the seconds spent so far."""

    def __init__(self, seconds_before: float) -> None:
        self.started = time.monotonic() - seconds_before

    @property
    def seconds(self) -> float:
        """Wall seconds of training, interrupted runs included up to their last saved state."""
        return time.monotonic() - self.started

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Called on every process once it has written its part."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.seconds)


def mark_complete(checkpoint: Path, seconds: float) -> None:
    """Record that every file of `checkpoint` is written, with its size in bytes."""
    sizes = {file.name: file.stat().st_size for file in sorted(checkpoint.iterdir()) if file.name != COMPLETE}
    write_json(checkpoint / COMPLETE, {"seconds": round(seconds, 3), "files": sizes})


def newest_complete(state: Path) -> tuple[Path | None, float]:
    """The state to resume from and the seconds that led to it; (None, 0) where none was written to its end."""
    found = [folder for folder in state.glob("checkpoint-*") if folder.name.rpartition("-")[2].isdigit()]
    for folder in sorted(found, key=lambda folder: -int(folder.name.rpartition("-")[2])):
        try:
            mark = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
            if all((folder / name).stat().st_size == size for name, size in mark["files"].items()):
                return folder, float(mark["seconds"])
        except (OSError, ValueError, KeyError):
            continue
    return None, 0.0


def finished(state: Path, out: Path) -> dict[str, Any] | None:
    """The facts of a run that has come to its end; None where there is still something to do.

    `out` is put back from the state where it is gone: when one of several models of a job fails, the workflow engine
    removes the outputs of the others, too.
    """
    try:
        facts: dict[str, Any] = json.loads((state / FINISHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not (out / "config.json").is_file():
        with replacing_folder(out) as folder:
            _link_files(state / MODEL, folder)
    return facts


def finish(state: Path, out: Path, facts: Mapping[str, Any]) -> None:
    """Keep the files of `out` (linked, so they take no room) and the facts; drop what they make useless.

    That is every saved state of this run, and the states of runs with other parameters that wrote the same output.
    """
    for folder in state.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)
    _link_files(out, state / MODEL)
    write_json(state / FINISHED, dict(facts))
    for other in state.parent.glob(f"{state.name.rpartition('-')[0]}-*"):
        if other != state:
            shutil.rmtree(other, ignore_errors=True)


def _link_files(source: Path, target: Path) -> None:
    """The files of `source` in `target`: hard links, or copies where the file system has none."""
    for file in (path for path in source.rglob("*") if path.is_file()):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.hardlink_to(file)
        except OSError:
            shutil.copy2(file, place)


@contextmanager
def naming_full_disk(folder: Path) -> Iterator[None]:
    """Turn what the libraries raise when a disk is full into one `InputError` that names `folder`."""
    try:
        yield
    except Exception as error:
        if not _is_full_disk(error):
            raise
        raise InputError(
            f"{folder}: no space left on the disk; free some and run again, training carries on where it was"
        ) from error


def _is_full_disk(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # safetensors has a type of its own; torch's writer only says that the file ends elsewhere than it should.
    return any(text in str(error) for text in ("No space left on device", "Disk quota exceeded", "unexpected pos"))
