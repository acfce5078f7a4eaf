"""Training by OpenRLHF: our shards in, our checkpoint contract out.

OpenRLHF renders the shards' message lists itself, ends every text with EOS, cuts over-long texts on the right and
leaves out pairs whose prompt alone fills the length. What that does to a data set is counted, and a chat template whose
turns end otherwise is refused: a model must be read as it was trained.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from shallow_signals.config.recipes import DPORecipe, Recipe
from shallow_signals.files import InputError, read_parquet, replacing_folder
from shallow_signals.gpu_claim import held_locks
from shallow_signals.models.load import load_causal_lm, load_reward_model, load_tokenizer
from shallow_signals.models.templates import Template, read_template
from shallow_signals.training.openrlhf_command import EVENTS, TRAINED, VERSION, command
from shallow_signals.training.resume import finish, finished, naming_full_disk
from shallow_signals.training.settings import LOGGED
from shallow_signals.training.torchrun import Job

# Of each of OpenRLHF's scalars, the name in our loss history.
_SCALARS = {"loss_mean": "loss", "acc_mean": "accuracy", "lr": "learning_rate", "grad_norm": "grad_norm"}
_OWN_KEYS = ("mean", "std", "normalize_reward", "value_head_prefix")  # that OpenRLHF adds to a model's configuration


def train(job: Job, recipe: Recipe, processes: int) -> dict[str, Any]:
    """Train as `training.dpo.train_dpo` or `training.reward.train_reward_model` would, on `processes` GPUs.

    A run that was killed carries on from OpenRLHF's newest state. Returns the facts for the sidecar. What can't be
    trained so is an `InputError` before anything starts; a failed training is a `RuntimeError`.
    """
    if (facts := finished(job.state, job.out)) is not None:
        return facts
    require_environment(processes)
    template = read_template(load_tokenizer(job.base), job.bos)
    refuse_template(job, template, reward_model=not isinstance(recipe, DPORecipe))
    counts = count_pairs(job.shards, recipe, processes)
    started = time.monotonic()
    with naming_full_disk(job.state):
        run(command(job, recipe, processes), job)
        history = read_history(job.state / EVENTS)
        convert(job.state / TRAINED, job.base, job.out, reward_model=not isinstance(recipe, DPORecipe))
        found = {
            "backend": f"openrlhf {VERSION}",
            **counts,
            "seconds": round(time.monotonic() - started, 1),  # of this call: earlier, interrupted ones left no clock
            "processes": processes,
            "device": torch.cuda.get_device_name(),
            "weights": recipe.weights,
            "compute": "bfloat16",
            "optimizer": "deepspeed adamw",
            "first_loss": history[0]["loss"],
            "last_loss": history[-1]["loss"],
            "loss_history": history[:: max(1, len(history) // LOGGED)],
            **({"beta": recipe.beta} if isinstance(recipe, DPORecipe) else {}),
        }
        finish(job.state, job.out, found)
    return found


def require_environment(processes: int) -> None:
    """Raise `InputError` unless the pinned OpenRLHF and a GPU for each process are there."""
    try:
        version = metadata.version("openrlhf")
    except metadata.PackageNotFoundError:
        version = "none"
    if version != VERSION:
        raise InputError(
            f"recipe: backend openrlhf needs openrlhf {VERSION} (found: {version}); run with `--sdm conda`, which "
            "brings envs/openrlhf.yaml, or set backend to trl"
        )
    if (devices := torch.cuda.device_count()) < processes:
        raise InputError(
            f"recipe: backend openrlhf needs {processes} GPUs, {devices} are in sight; or set backend: trl"
        )


def refuse_template(job: Job, template: Template, *, reward_model: bool) -> None:
    """Raise `InputError` where OpenRLHF would read other texts than the rest of the workflow does.

    Its texts end with EOS: trailing line feeds go, and where the rest does not end with EOS, one is appended. A reward
    model is read at its last token, so its closing must be EOS alone; a policy's may have line feeds behind it.
    """
    tokenizer = load_tokenizer(job.base)
    closing = template.closing_text if reward_model else template.closing_text.rstrip("\n")
    problem = None
    if closing != tokenizer.eos_token:
        problem = f"ends a turn with {template.closing_text!r}, OpenRLHF ends every text with {tokenizer.eos_token!r}"
    elif bool(template.bos_text) != bool(template.bos_ids):
        problem = (
            "does not write the BOS that prompts are to have (see the model's `bos`); OpenRLHF takes the template's"
        )
    elif not template.has_system:
        problem = "has no system role; OpenRLHF does not fold system turns into the user's"
    if problem is not None:
        raise InputError(f"{job.base}: the chat template {problem}; set backend to trl")
    if "auto_map" in json.loads((job.base / "config.json").read_text(encoding="utf-8")):
        raise InputError(
            f"{job.base}: config.json names code of its own (auto_map), which OpenRLHF would run; remove it"
        )


def count_pairs(shards: Path, recipe: Recipe, processes: int) -> dict[str, int]:
    """What OpenRLHF makes of the train files in `shards`: pairs, steps, what is left out and what is cut.

    `tokens_per_epoch` are those of both texts of every pair, prompts twice, padding left out.
    """
    files = sorted(shards.glob("train-*.parquet"))
    if not files:
        raise InputError(f"{shards}: holds no train-*.parquet")
    names = ("prompt", "chosen", "rejected")
    parts = [read_parquet(file, [f"{name}_tokens" for name in names]) for file in files]
    prompt, chosen, rejected = (
        np.concatenate([pc.list_value_length(part[f"{name}_tokens"]).to_numpy() for part in parts]) for name in names
    )
    kept = prompt < recipe.max_length - 2
    texts = np.stack([prompt + chosen + 1, prompt + rejected + 1])[:, kept]  # the closing is one token
    pairs, epochs = int(kept.sum()), int(recipe.epochs)
    # Each process takes as many pairs as all can have, in whole micro-batches; a step that lacks some is not made.
    micro_batches = pairs // processes // recipe.micro_batch
    steps = epochs * micro_batches // (recipe.global_batch // recipe.micro_batch // processes)
    if pairs < recipe.global_batch or not steps:
        raise InputError(f"{shards}: {pairs} pairs make no step of {recipe.global_batch}; OpenRLHF drops short ones")
    seen = steps * recipe.global_batch
    return {
        "steps": steps,
        "pairs": pairs,
        "pairs_seen": seen,
        "dropped_per_epoch": pairs - seen // epochs,
        "prompts_too_long": int((~kept).sum()),
        "cut_on_the_right": int((texts > recipe.max_length).any(0).sum()),
        "tokens_per_epoch": int(np.minimum(texts, recipe.max_length).sum()),
    }


def run(arguments: Sequence[str], job: Job) -> None:
    """Run OpenRLHF offline, what it says going to this process's output."""
    job.state.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(job.state / "datasets"),
        "WANDB_MODE": "disabled",
    }
    with subprocess.Popen(
        arguments,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        pass_fds=held_locks(),
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
    if process.returncode:
        raise RuntimeError(f"{job.out}: OpenRLHF ended with code {process.returncode}")


def read_history(events: Path) -> list[dict[str, float]]:
    """The loss history of every optimiser step, from OpenRLHF's event files (those of resumed runs included)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps: dict[int, dict[str, float]] = {}
    for file in sorted(events.rglob("events.*"), key=lambda file: file.stat().st_mtime_ns):
        reader = EventAccumulator(str(file), size_guidance={"scalars": 0})
        reader.Reload()
        for scalar, name in _SCALARS.items():
            if f"train/{scalar}" in reader.Tags()["scalars"]:
                for event in reader.Scalars(f"train/{scalar}"):
                    steps.setdefault(event.step, {"step": event.step})[name] = event.value
    if not steps:
        raise RuntimeError(f"{events}: OpenRLHF logged no step")
    return [steps[step] for step in sorted(steps)]


def convert(trained: Path, base: Path, out: Path, *, reward_model: bool) -> None:
    """Make what OpenRLHF saved in `trained` an ordinary checkpoint in `out`.

    The weights go through transformers' own class, so that a missing one is noticed; tokenizer and chat template are
    the base model's (OpenRLHF saves them with another padding), and so are the settings that it changes for training.
    """
    if not (trained / "config.json").is_file():
        raise RuntimeError(f"{trained}: OpenRLHF ended without a checkpoint")
    load = load_reward_model if reward_model else load_causal_lm
    model = load(trained, torch.bfloat16)
    settings = json.loads((base / "config.json").read_text(encoding="utf-8"))
    model.config.use_cache = settings.get("use_cache", True)
    model.config.pad_token_id = settings.get("pad_token_id")
    for key in _OWN_KEYS:
        if hasattr(model.config, key):
            delattr(model.config, key)
    with replacing_folder(out) as folder:
        model.save_pretrained(folder)
        load_tokenizer(base).save_pretrained(folder)
