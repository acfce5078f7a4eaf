"""Training in several processes of one machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

import checkpoints
import reward_setup as setup
from shallow_signals.files import InputError
from shallow_signals.training import launch
from shallow_signals.training.launch import RewardJob, train_reward_model
from shallow_signals.training.torchrun import REFUSED, serve_job


@pytest.fixture
def job(tmp_path: Path) -> RewardJob:
    """Two steps of 16 pairs."""
    return RewardJob(
        base=checkpoints.chatml(tmp_path / "base"),
        shards=setup.write_shards(tmp_path / "shards", setup.random_pairs(37)[3:]),
        recipe=setup.recipe(),
        seed=0,
        out=tmp_path / "out",
        state=tmp_path / "state",
    )


def test_two_processes_train_the_same_model(job: RewardJob, tmp_path: Path) -> None:
    """34 pairs: one process has a last step of 2, two of them can't cut it evenly and leave it out."""
    together = train_reward_model(job, processes=2)
    assert (together["processes"], together["steps"], together["dropped_per_epoch"]) == (2, 2, 2)
    alone = train_reward_model(job.model_copy(update={"out": tmp_path / "alone", "state": tmp_path / "other"}))
    assert (alone["processes"], alone["steps"], alone["pairs_seen"]) == (1, 3, together["pairs_seen"] + 2)
    for one, other in zip(together["loss_history"], alone["loss_history"], strict=False):
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["accuracy"] == other["accuracy"]
    assert load_file(job.out / "model.safetensors").keys() == load_file(tmp_path / "alone" / "model.safetensors").keys()


def test_bad_input_crosses_processes(job: RewardJob) -> None:
    bad = job.model_copy(update={"shards": job.base})
    with pytest.raises(InputError, match=r"no train-\*"):
        train_reward_model(bad)
    (job.state / "job.json").parent.mkdir(exist_ok=True)
    (job.state / "job.json").write_text(bad.model_dump_json(), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"no train-\*"):
        serve_job(RewardJob, launch._train, job.state / "job.json")
    assert "no train-*" in (job.state / REFUSED).read_text()
