"""DPO that is killed and run again, and DPO in several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import checkpoints
import dpo_setup as dpo
from shallow_signals.config.recipes import DPORecipe, Lora
from shallow_signals.files import InputError
from shallow_signals.models import logprob_files
from shallow_signals.training import references
from shallow_signals.training.dpo import FastDPOTrainer, train_dpo
from shallow_signals.training.launch_dpo import DPOJob
from shallow_signals.training.launch_dpo import train_dpo as launch
from shallow_signals.training.resume import newest_complete

# 70 pairs in steps of 16: 5 steps of 18 micro-batches. States at 3 and 5. References are scored in groups of 8.
FULL = dpo.recipe(checkpoint_every=3, learning_rate=3e-3, warmup_ratio=0.1, max_grad_norm=1.0)
LORA = FULL.model_copy(update={"lora": Lora(rank=4)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model and shards."""
    folder = tmp_path_factory.mktemp("resume")
    base = checkpoints.chatml(folder / "base")
    dpo.cut_shards(base, dpo.tokens_file(base, dpo.conversations(70), folder), "full", folder / "shards")
    return folder


def train(folder: Path, settings: DPORecipe, name: Path) -> dict[str, torch.Tensor]:
    """Train to the end (from what stands in the state folder) and read the weights."""
    logprob_files.GROUP = 8
    train_dpo(folder / "shards", folder / "base", None, settings, 0, name / "out", name / "state")
    found: dict[str, torch.Tensor] = load_file(name / "out" / "model.safetensors")
    return found


def train_and_die(folder: Path, settings: DPORecipe, name: Path, moment: str, number: int) -> None:
    """Runs in a process of its own, which kills itself in the `number`-th call of what `moment` names."""
    owner: Any
    owner, attribute = {
        "micro-batch": (FastDPOTrainer, "compute_loss"),
        "reference": (logprob_files, "write_parquet"),
    }[moment]
    plain = getattr(owner, attribute)
    calls = 0

    def dying(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*arguments, **named)

    setattr(owner, attribute, dying)
    train(folder, settings, name)


@pytest.mark.parametrize(
    ("settings", "moment", "number", "resumed_from"),
    [(FULL, "micro-batch", 14, 3), (LORA, "micro-batch", 14, 3), (FULL, "reference", 4, None)],
)
def test_a_killed_run_ends_with_the_same_weights(
    settings: DPORecipe, moment: str, number: int, resumed_from: int | None, folder: Path, tmp_path: Path
) -> None:
    monkey = pytest.MonkeyPatch()
    monkey.setattr(logprob_files, "GROUP", 8)
    whole = train(folder, settings, tmp_path / "whole")
    monkey.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # for the server that imports once for all
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dpo_setup"])
    killed = tmp_path / "killed"
    process = context.Process(target=train_and_die, args=(folder, settings, killed, moment, number))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    checkpoint, _ = newest_complete(killed / "state")
    assert checkpoint == (resumed_from and killed / "state" / f"checkpoint-{resumed_from}")
    groups = list((killed / "state").glob("references-*/group-*.parquet"))
    assert len(groups) == (3 if moment == "reference" else 9)
    scored: list[int] = []
    score_missing = references.make_groups

    def counting(*arguments: Any, **named: Any) -> None:
        total, make = arguments[1:3]
        score_missing(arguments[0], total, lambda start, end: (scored.append(start), make(start, end))[1], **named)

    monkey.setattr(references, "make_groups", counting)
    found = train(folder, settings, killed)
    assert len(scored) == 9 - len(groups)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert sorted(path.name for path in (killed / "state").iterdir()) == ["finished.json", "model"]
    monkey.undo()


def test_two_processes_train_the_same_policy(folder: Path, tmp_path: Path) -> None:
    """70 pairs: one process has a last step of 6, two of them leave it out; each scores half of the references."""
    job = DPOJob(
        base=folder / "base",
        shards=folder / "shards",
        recipe=dpo.recipe(schedule="constant_with_warmup"),  # which does not depend on the number of steps
        seed=0,
        out=tmp_path / "out",
        state=tmp_path / "state",
    )
    together = launch(job, processes=2)
    assert (together["processes"], together["steps"], together["dropped_per_epoch"]) == (2, 4, 6)
    assert together["references_scored"] == 70
    alone = launch(job.model_copy(update={"out": tmp_path / "alone", "state": tmp_path / "other"}))
    assert (alone["processes"], alone["steps"]) == (1, 5)
    for one, other in zip(together["loss_history"][:4], alone["loss_history"], strict=False):
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        if one["step"] > 1:  # at first all margins are zero but for rounding
            assert one["accuracy"] == other["accuracy"]
    with pytest.raises(InputError, match=r"no train-\*"):
        launch(job.model_copy(update={"shards": folder / "base", "state": tmp_path / "bad"}))
