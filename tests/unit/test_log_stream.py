"""What a step writes, in its log and on the terminal."""

from __future__ import annotations

from io import StringIO

from shallow_signals.log_stream import LogStream


def test_the_log_has_everything_and_the_terminal_the_progress_that_is_due() -> None:
    log, terminal = StringIO(), StringIO()
    stream = LogStream(log, terminal, "train one", every=0.0)
    written = ["a message\n", "\r 10%|#         | 1/10", "100% of it\n"]
    assert [stream.write(text) for text in written] == [len(text) for text in written]
    assert log.getvalue() == "".join(written)
    assert terminal.getvalue() == "[train one] 10%|#         | 1/10\n"


def test_progress_that_is_not_due_stays_in_the_log() -> None:
    log, terminal = StringIO(), StringIO()
    stream = LogStream(log, terminal, "train one", every=3600.0)
    stream.write("\r 10%|#         | 1/10")
    assert "10%" in log.getvalue() and terminal.getvalue() == ""
