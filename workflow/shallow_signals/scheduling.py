"""What a long run asks of Snakemake's scheduler: to look again once in a while, not ever more often.

With a limit of jobs a second, which is the default, the scheduler of Snakemake 9.27 looks for free slots a second after
each look, by a timer. Each job that ends makes it look once more, and thereby starts another endless chain of timers:
after a hundred jobs it looks a hundred times a second, which took a quarter of a core from the jobs of a small machine
(docs/benchmarks.md), and takes as much of a cluster's login node.
"""

from __future__ import annotations

from threading import Timer
from typing import Any


def keep_one_timer() -> None:
    """From now on a scheduler of this process has at most one timer pending."""
    from snakemake.scheduling.job_scheduler import JobScheduler  # type: ignore[import-untyped]

    JobScheduler._schedule_reevalutation = _look_again


def _look_again(scheduler: Any, delay: float) -> None:
    """Let the scheduler look again in `delay` seconds, unless that is under way already."""
    if getattr(scheduler, "_timer", None) is not None:
        return

    def look() -> None:
        scheduler._timer = None  # before the look, which asks for the next one
        scheduler._open_jobs.release()

    scheduler._timer = Timer(delay, look)
    scheduler._timer.daemon = True  # the end of a run doesn't wait for it
    scheduler._timer.start()
