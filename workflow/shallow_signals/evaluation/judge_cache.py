"""A durable record of paid answers: append-only JSON lines, each on disk before the next is asked for."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shallow_signals.files import InputError


class AnswerCache:
    """Answers by key in one file; open it as a context manager.

    Every `add` is one line, written and fsynced under a lock, so a killed run loses none that was added. A last line
    torn by a kill is cut off on opening; a broken line elsewhere is an `InputError` (the file was edited). A second
    process that opens the same file gets an `InputError`: both would pay for the same answers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._answers: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._file = -1

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._load()
        except BlockingIOError:
            os.close(self._file)
            raise InputError(f"{self.path}: another judging run is using this cache; wait for it to end") from None
        except BaseException:
            os.close(self._file)
            raise
        _sync_folder(self.path.parent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)  # releases the lock

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer stored under `key`."""
        return self._answers.get(key)

    def add(self, key: str, answer: dict[str, Any]) -> None:
        """Store an answer; it is on disk when this returns. Safe to call from several threads."""
        line = json.dumps({"key": key, **answer}, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
            self._answers[key] = answer

    def _load(self) -> None:
        lines = self.path.read_bytes().split(b"\n")
        torn = lines.pop()  # empty after a complete last line
        for number, line in enumerate(lines, start=1):
            answer = _parse(line)
            if answer is None:
                raise InputError(f"{self.path}: line {number} is no cached answer; repair the line or remove it")
            self._answers[answer.pop("key")] = answer
        if torn:
            os.ftruncate(self._file, sum(len(line) + 1 for line in lines))


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) and isinstance(answer.get("key"), str) else None


def _sync_folder(folder: Path) -> None:
    """Make the file's name itself durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
