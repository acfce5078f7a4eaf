"""Start a training here, or in several processes of this machine when it has several GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from shallow_signals.files import InputError, write_text
from shallow_signals.gpu_claim import held_locks
from shallow_signals.provenance import ROOT

REFUSED = "refused.txt"  # what one of several processes says about bad input


class Job(BaseModel):
    """The arguments of a training, as they travel to other processes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shards: Path
    base: Path
    seed: int
    out: Path
    state: Path
    bos: Literal["auto", "never"] = "auto"


J = TypeVar("J", bound=Job)


def run_job(job: J, train: Callable[[J], dict[str, Any]], module: str, processes: int) -> dict[str, Any]:
    """`train(job)` in this process, or `python -m module` through torchrun in `processes` of them; the facts.

    What a process of several says goes to this one's standard output and error. Bad input is an `InputError` either
    way; any other failure of several processes is a `RuntimeError`.
    """
    if processes == 1:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # with more in sight transformers would take them all
        return train(job)
    from shallow_signals.training.resume import finished

    file = job.state / "job.json"
    refused = job.state / REFUSED
    refused.unlink(missing_ok=True)
    write_text(file, job.model_dump_json(indent=2))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    search = os.pathsep.join(filter(None, [str(ROOT.parent), os.environ.get("PYTHONPATH")]))
    command, environment = [*torchrun, "-m", module, str(file)], {**os.environ, "PYTHONPATH": search}
    ended = subprocess.run(command, env=environment, pass_fds=held_locks())
    if ended.returncode and refused.is_file():
        raise InputError(refused.read_text(encoding="utf-8").strip())
    if ended.returncode:
        raise RuntimeError(f"{job.out}: training in {processes} processes ended with code {ended.returncode}")
    facts = finished(job.state, job.out)
    if facts is None:
        raise RuntimeError(f"{job.out}: training ended without a checkpoint")
    return facts


def serve_job(kind: type[J], train: Callable[[J], dict[str, Any]], file: Path) -> None:
    """One of several processes."""
    job = kind.model_validate_json(file.read_text(encoding="utf-8"))
    try:
        train(job)
    except InputError as error:
        write_text(job.state / REFUSED, str(error))
        raise SystemExit(f"{error}") from None
