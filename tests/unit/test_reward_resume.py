"""Training that is killed and run again, states that are half written, disks that are full."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import Trainer

import checkpoints
import reward_setup as setup
from shallow_signals.config.recipes import Lora, RewardRecipe
from shallow_signals.files import InputError
from shallow_signals.provenance import content_hash
from shallow_signals.states import state_folder
from shallow_signals.training import resume, reward, runs
from shallow_signals.training.resume import mark_complete, naming_full_disk, newest_complete
from shallow_signals.training.steps import SortedSteps

# 70 pairs in steps of 16: an epoch has 5 steps (the last one of 6 pairs) and 18 micro-batches. States at 3, 6, 9, 10.
FULL = setup.recipe(epochs=2, checkpoint_every=3, learning_rate=3e-3, warmup_ratio=0.1, max_grad_norm=1.0)
LORA = FULL.model_copy(update={"lora": Lora(rank=4)})
HALF_EPOCHS = FULL.model_copy(update={"epochs": 1.5})  # 8 steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model and shards."""
    folder = tmp_path_factory.mktemp("resume")
    checkpoints.chatml(folder / "base")
    setup.write_shards(folder / "shards", setup.random_pairs(73, closing=())[3:])
    return folder


def train(folder: Path, settings: RewardRecipe, name: str) -> dict[str, torch.Tensor]:
    """Train to the end (from what stands in the state folder) and read the weights."""
    reward.train_reward_model(
        folder / "shards", folder / "base", settings, 0, folder / name / "out", folder / name / "state"
    )
    return load_file(folder / name / "out" / "model.safetensors")


def train_and_die(folder: Path, settings: RewardRecipe, name: str, moment: str, number: int) -> None:
    """Runs in a process of its own, which kills itself in the `number`-th call of what `moment` names."""
    owner: Any
    owner, attribute = {
        "micro-batch": (reward.FastRewardTrainer, "compute_loss"),
        "saving": (Trainer, "_save_rng_state"),
        "marking": (resume, "mark_complete"),
        "finishing": (runs, "finish"),
        "writing the checkpoint": (runs, "save_model"),
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


def kill(folder: Path, settings: RewardRecipe, name: str, moment: str, number: int) -> None:
    monkey = pytest.MonkeyPatch()
    monkey.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # for the server that imports once for all
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["reward_setup", "checkpoints"])
    process = context.Process(target=train_and_die, args=(folder, settings, name, moment, number))
    process.start()
    monkey.undo()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert not (folder / name / "out" / "training.json").exists()


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("settings", "kills", "resumed_from"),
    [
        (FULL, [("micro-batch", 2)], None),
        (FULL, [("micro-batch", 14)], 3),
        (FULL, [("micro-batch", 14), ("micro-batch", 21)], 6),  # twice; the second time in the second epoch
        (FULL, [("saving", 2)], 3),  # weights and optimiser of step 6 are written, its state is not
        (FULL, [("marking", 3)], 6),  # everything of step 9 is written but not known to be whole
        (FULL, [("writing the checkpoint", 1)], 10),
        (LORA, [("micro-batch", 33)], 6),
        (HALF_EPOCHS, [("micro-batch", 25)], 6),
        (HALF_EPOCHS, [("finishing", 1)], 8),
    ],
)
def test_a_killed_run_ends_with_the_same_weights(
    settings: RewardRecipe, kills: list[tuple[str, int]], resumed_from: int | None, folder: Path, tmp_path: Path
) -> None:
    whole = train(folder, settings, str(tmp_path / "whole"))
    for moment, number in kills:
        kill(folder, settings, str(tmp_path / "killed"), moment, number)
    checkpoint, seconds = newest_complete(tmp_path / "killed" / "state")
    assert checkpoint == (resumed_from and tmp_path / "killed" / "state" / f"checkpoint-{resumed_from}")
    assert (seconds > 0) == (checkpoint is not None)
    assert equal(train(folder, settings, str(tmp_path / "killed")), whole)
    assert sorted(path.name for path in (tmp_path / "killed" / "state").iterdir()) == ["finished.json", "model"]


def test_a_resumed_run_that_forgets_something_ends_elsewhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative controls: the epoch's order, or the optimiser's moments."""
    whole = train(folder, FULL, str(tmp_path / "whole"))
    kill(folder, FULL, str(tmp_path / "killed"), "micro-batch", 33)
    shutil.copytree(tmp_path / "killed", tmp_path / "again")
    with monkeypatch.context() as patch:
        patch.setattr(SortedSteps, "set_epoch", lambda self, epoch: None)
        assert not equal(train(folder, FULL, str(tmp_path / "killed")), whole)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_load_optimizer_and_scheduler", lambda self, checkpoint: None)
        assert not equal(train(folder, FULL, str(tmp_path / "again")), whole)


def test_only_whole_states_count(tmp_path: Path) -> None:
    for step in (3, 12, 6):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"x" * step)
        mark_complete(folder, 1.5 * step)
    (tmp_path / "checkpoint-99").mkdir()
    (tmp_path / "checkpoint-last").mkdir()
    assert newest_complete(tmp_path) == (tmp_path / "checkpoint-12", 18.0)
    (tmp_path / "checkpoint-12" / "model.safetensors").write_bytes(b"x" * 11)
    assert newest_complete(tmp_path) == (tmp_path / "checkpoint-6", 9.0)
    (tmp_path / "checkpoint-6" / "complete.json").write_text('{"seconds": 9.0, "fil')
    assert newest_complete(tmp_path) == (tmp_path / "checkpoint-3", 4.5)
    (tmp_path / "checkpoint-3" / "model.safetensors").unlink()
    assert newest_complete(tmp_path) == (None, 0.0)


def test_a_state_belongs_to_its_parameters_and_inputs(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "seed0"

    def state(seed: int, shards: Path) -> Path:
        hashes = {"shards": content_hash(shards), "base": content_hash(folder / "base")}
        return state_folder(out, {"seed": seed}, hashes)

    first = state(0, folder / "shards")
    assert first.parent == tmp_path
    shutil.copytree(folder / "shards", tmp_path / "copy")
    assert state(0, tmp_path / "copy") == first
    assert state(1, folder / "shards") != first
    setup.write_shards(tmp_path / "copy", setup.random_pairs(9)[3:])
    assert state(0, tmp_path / "copy") != first


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_is_one_line_that_names_the_folder(folder: Path, tmp_path: Path) -> None:
    """The errors are the libraries' own, raised by a device that is always full."""

    def plain_file() -> None:
        with Path("/dev/full").open("w") as handle:
            handle.write("x")

    weights = {"weight": torch.zeros(1 << 16)}

    def safetensors_file() -> None:  # what it says on a full tmpfs; on a device it would put a file in its place
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    for way in (plain_file, safetensors_file, lambda: torch.save(weights, "/dev/full")):
        with (
            pytest.raises(InputError, match=r"seed0: no space left on the disk") as caught,
            naming_full_disk(Path("seed0")),
        ):
            way()
        assert "\n" not in str(caught.value)
    with pytest.raises(OSError) as other, naming_full_disk(Path("seed0")):
        raise OSError(errno.EACCES, "Permission denied")
    assert not isinstance(other.value, InputError)


def test_a_disk_that_fills_up_while_training(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second state can't be written; once there is room the run carries on from the first."""
    name = str(tmp_path / "filling")
    save, calls = Trainer._save_optimizer_and_scheduler, []

    def filling(self: Any, output: str) -> None:
        calls.append(output)
        if len(calls) == 2:
            torch.save({"weight": torch.zeros(1 << 16)}, "/dev/full")
        save(self, output)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_optimizer_and_scheduler", filling)
        with pytest.raises(InputError, match="filling/state: no space left"):
            train(folder, FULL, name)
    assert not Path(name, "out").exists()
    assert newest_complete(Path(name, "state"))[0] == Path(name, "state", "checkpoint-3")
    assert equal(train(folder, FULL, name), train(folder, FULL, str(tmp_path / "whole")))


def test_a_finished_model_comes_back_when_its_folder_is_removed(tmp_path: Path) -> None:
    """What Snakemake does to a job's outputs when another of them failed; the states of older recipes go."""
    out = tmp_path / "seed1"
    state, older = tmp_path / ".seed1.state-b", tmp_path / ".seed1.state-a"
    for folder in (out / "adapter", state / "checkpoint-4", older):
        folder.mkdir(parents=True)
    (out / "config.json").write_text("{}")
    (out / "adapter" / "weights").write_text("w")
    resume.finish(state, out, {"steps": 4})
    assert not older.exists()
    assert not (state / "checkpoint-4").exists()
    shutil.rmtree(out)
    assert resume.finished(state, out) == {"steps": 4}
    assert (out / "adapter" / "weights").read_text() == "w"
    assert resume.finished(older, out) is None
