"""Where a step's output goes: all of it into its log, its progress also to the terminal."""

from __future__ import annotations

import time
from typing import TextIO


class LogStream:
    """A text stream into the log that repeats progress bars on the terminal, a whole line every few seconds."""

    encoding = "utf-8"

    def __init__(self, log: TextIO, terminal: TextIO, name: str, every: float = 10.0) -> None:
        self.log, self.terminal, self.name, self.every = log, terminal, name, every
        self.last = time.monotonic()

    def write(self, text: str) -> int:
        """Log `text`, and show it if it is a progress bar that is due."""
        self.log.write(text)
        line = text.strip()
        if "\r" in text and "%|" in line and time.monotonic() - self.last > self.every:
            self.last = time.monotonic()
            self.terminal.write(f"[{self.name}] {line}\n")
            self.terminal.flush()
        return len(text)

    def flush(self) -> None:
        """Flush the log."""
        self.log.flush()

    def isatty(self) -> bool:
        """No: progress bars leave out their colours."""
        return False
