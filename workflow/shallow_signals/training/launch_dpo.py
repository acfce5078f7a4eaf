"""Train a policy with DPO here, or in several processes of this machine when it has several GPUs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from shallow_signals.config.recipes import DPORecipe
from shallow_signals.training.torchrun import Job, run_job, serve_job

MODULE = "shallow_signals.training.launch_dpo"


class DPOJob(Job):
    """The arguments of `training.dpo.train_dpo`."""

    recipe: DPORecipe
    reference_logprobs: Path | None = None


def train_dpo(job: DPOJob, processes: int = 1) -> dict[str, Any]:
    """Train in this process, or in `processes` of them; the facts for the sidecar. Errors as in `torchrun.run_job`.

    A recipe whose backend is OpenRLHF goes to it (see `training.openrlhf`).
    """
    if job.recipe.backend == "openrlhf":
        from shallow_signals.training import openrlhf

        return openrlhf.train(job, job.recipe, processes)
    return run_job(job, _train, MODULE, processes)


def _train(job: DPOJob) -> dict[str, Any]:
    from shallow_signals.training import dpo

    return dpo.train_dpo(
        job.shards, job.base, job.reference_logprobs, job.recipe, job.seed, job.out, job.state, bos=job.bos
    )


if __name__ == "__main__":
    serve_job(DPOJob, _train, Path(sys.argv[1]))
