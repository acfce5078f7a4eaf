"""Start a training here, or in several processes of this machine when it has several GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from shallow_signals.config.recipes import RewardRecipe
from shallow_signals.files import InputError, write_text
from shallow_signals.provenance import PACKAGE, ROOT

REFUSED = "refused.txt"  # what one of several processes says about bad input


class RewardJob(BaseModel):
    """The arguments of `training.reward.train_reward_model`, as they travel to other processes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shards: Path
    base: Path
    recipe: RewardRecipe
    seed: int
    out: Path
    state: Path
    bos: Literal["auto", "never"] = "auto"


def train_reward_model(job: RewardJob, processes: int = 1) -> dict[str, Any]:
    """Train in this process, or through torchrun in `processes` of them; return the facts for the sidecar.

    What a process of several says goes to this one's standard output and error. Bad input is an `InputError` either
    way; any other failure of several processes is a `RuntimeError`.
    """
    if processes == 1:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # with more in sight transformers would take them all
        return _train(job)
    file = job.state / "job.json"
    refused = job.state / REFUSED
    refused.unlink(missing_ok=True)
    write_text(file, job.model_dump_json(indent=2))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    search = os.pathsep.join(filter(None, [str(ROOT.parent), os.environ.get("PYTHONPATH")]))
    ended = subprocess.run(
        [*torchrun, "-m", f"{PACKAGE}.training.launch", str(file)], env={**os.environ, "PYTHONPATH": search}
    )
    if ended.returncode and refused.is_file():
        raise InputError(refused.read_text(encoding="utf-8").strip())
    if ended.returncode:
        raise RuntimeError(f"{job.out}: training in {processes} processes ended with code {ended.returncode}")
    return _facts(job)


def _train(job: RewardJob) -> dict[str, Any]:
    from shallow_signals.training import reward

    return reward.train_reward_model(job.shards, job.base, job.recipe, job.seed, job.out, job.state, bos=job.bos)


def _facts(job: RewardJob) -> dict[str, Any]:
    from shallow_signals.training.resume import finished

    facts = finished(job.state, job.out)
    if facts is None:
        raise RuntimeError(f"{job.out}: training ended without a checkpoint")
    return facts


def _main(file: Path) -> None:
    """One of several processes."""
    job = RewardJob.model_validate_json(file.read_text(encoding="utf-8"))
    try:
        _train(job)
    except InputError as error:
        write_text(job.state / REFUSED, str(error))
        raise SystemExit(f"{error}") from None


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
