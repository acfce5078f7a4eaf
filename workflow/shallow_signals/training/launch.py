"""Train a reward model here, or in several processes of this machine when it has several GPUs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from shallow_signals.config.recipes import RewardRecipe
from shallow_signals.training.torchrun import Job, run_job, serve_job

MODULE = "shallow_signals.training.launch"


class RewardJob(Job):
    """The arguments of `training.reward.train_reward_model`."""

    recipe: RewardRecipe


def train_reward_model(job: RewardJob, processes: int = 1) -> dict[str, Any]:
    """Train in this process, or in `processes` of them; the facts for the sidecar. Errors as in `torchrun.run_job`.

    A recipe whose backend is OpenRLHF goes to it (see `training.openrlhf`).
    """
    if job.recipe.backend == "openrlhf":
        from shallow_signals.training import openrlhf

        return openrlhf.train(job, job.recipe, processes)
    return run_job(job, _train, MODULE, processes)


def _train(job: RewardJob) -> dict[str, Any]:
    from shallow_signals.training import reward

    return reward.train_reward_model(job.shards, job.base, job.recipe, job.seed, job.out, job.state, bos=job.bos)


if __name__ == "__main__":
    serve_job(RewardJob, _train, Path(sys.argv[1]))
