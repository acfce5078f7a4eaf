"""A training run from shards to a checkpoint: prepared, carried on where it was, saved, summed up."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from shallow_signals.config.recipes import Recipe
from shallow_signals.files import InputError, replacing_folder, write_json
from shallow_signals.models.load import load_tokenizer
from shallow_signals.models.templates import Bos, read_template
from shallow_signals.training.adapters import keep_adapter_precise
from shallow_signals.training.pairs import read_pairs, row_shapes
from shallow_signals.training.resume import MarkComplete, finish, naming_full_disk, newest_complete
from shallow_signals.training.rounding import LostUpdates
from shallow_signals.training.settings import compute_type, processes, trainer_arguments
from shallow_signals.training.steps import SortedSteps, padded_tokens

HISTORY = ("loss", "accuracy", "margin", "learning_rate", "grad_norm")
ADAPTER = "adapter"  # folder of a policy's LoRA adapter, beside its merged weights


@dataclass(frozen=True)
class Run:
    """What is known before a trainer stands."""

    recipe: Recipe
    state: Path
    tokenizer: Any
    closing: tuple[int, ...]  # empty where the recipe drops the end of turn
    pairs: datasets.Dataset
    cut_left: int  # pairs that did not fit
    rows: NDArray[np.int64]  # of a batch, that each pair takes
    widths: NDArray[np.int64]  # of the longest of them
    tokens: int  # of all rows
    sampler: SortedSteps
    arguments: dict[str, Any]  # of TRL's configuration classes
    checkpoint: Path | None  # to resume from
    clock: MarkComplete
    rounding: LostUpdates

    @property
    def dtype(self) -> torch.dtype:
        """The type that the weights are kept in; those under an adapter never change: that of the products does."""
        kept = compute_type(self.recipe) if self.recipe.lora else self.recipe.weights
        return torch.bfloat16 if kept == "bfloat16" else torch.float32

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """What every fast trainer takes."""
        callbacks: list[TrainerCallback] = [self.clock]
        if self.recipe.weights == "bfloat16":
            callbacks.append(self.rounding)
        return {
            "train_dataset": self.pairs,
            "processing_class": self.tokenizer,
            "sampler": self.sampler,
            "share_prompt": self.recipe.share_prompt,
            "callbacks": callbacks,
        }


def prepare_run(shards: Path, base: Path, recipe: Recipe, seed: int, state: Path, bos: Bos) -> Run:
    """Read the train files in `shards` as the recipe cuts them and find the newest complete state."""
    tokenizer = load_tokenizer(base)
    _check_first_layer(recipe, base)
    template = read_template(tokenizer, bos)
    closing = template.closing_ids if recipe.end_of_turn == "keep" else ()
    bos_id = template.bos_ids[0] if template.bos_ids else None
    pairs, cut_left = read_pairs(shards, closing=closing, max_length=recipe.max_length, bos_id=bos_id)
    rows, widths, tokens = row_shapes(pairs, recipe.share_prompt)
    sampler = SortedSteps(
        widths,
        global_batch=recipe.global_batch,
        micro_batch=recipe.micro_batch,
        processes=processes(),
        seed=seed,
        sort=recipe.sort_in_step,
    )
    arguments = trainer_arguments(recipe, seed=seed, state=state, steps_per_epoch=sampler.steps)
    checkpoint, seconds_before = newest_complete(state)
    return Run(
        recipe=recipe,
        state=state,
        tokenizer=tokenizer,
        closing=tuple(closing),
        pairs=pairs,
        cut_left=cut_left,
        rows=rows,
        widths=widths,
        tokens=tokens,
        sampler=sampler,
        arguments=arguments,
        checkpoint=checkpoint,
        clock=MarkComplete(seconds_before),
        rounding=LostUpdates(every=arguments["logging_steps"]),
    )


def _check_first_layer(recipe: Recipe, base: Path) -> None:
    if recipe.lora is None or not recipe.lora.first_layer:
        return
    layers = json.loads((base / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    if recipe.lora.first_layer >= layers:
        raise InputError(f"recipe: lora.first_layer {recipe.lora.first_layer}: {base} has layers 0 to {layers - 1}")


def complete_run(trainer: Any, run: Run, out: Path, **facts: Any) -> dict[str, Any]:
    """Train to the end, write the checkpoint to `out` and return the facts for the sidecar, with those given added.

    Every process of a group calls this; all of them return the facts, the first one writes.
    """
    if run.arguments["bf16"]:
        keep_adapter_precise(trainer.model)
    with naming_full_disk(run.state):
        _train(trainer, run.checkpoint)
    recipe, sampler, steps = run.recipe, run.sampler, trainer.state.global_step
    orders = _orders(sampler, steps)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    found = {
        "steps": steps,
        "pairs": len(run.pairs),
        "pairs_seen": sum(map(len, orders)),
        "dropped_per_epoch": sampler.dropped,
        "cut_on_the_left": run.cut_left,
        "tokens_per_epoch": run.tokens,
        "tokens_with_padding": sum(
            padded_tokens(order, sampler, recipe.micro_batch, run.rows, processes()) for order in orders
        ),
        "seconds": round(run.clock.seconds, 1),
        "processes": processes(),
        "device": _device_name(trainer.accelerator.device),
        "weights": recipe.weights,
        "compute": compute_type(recipe),
        "optimizer": trainer.args.optim.value,
        "updates_lost_to_rounding": run.rounding.share,  # of bfloat16 weights, since the last resumption
        "first_loss": history[0]["loss"],
        "last_loss": history[-1]["loss"],
        "loss_history": [{key: entry[key] for key in ("step", *HISTORY) if key in entry} for entry in history],
        **facts,
    }
    with naming_full_disk(out.parent):
        if trainer.is_world_process_zero():
            save_model(trainer, run.tokenizer, out)
            finish(run.state, out, found)
    trainer.accelerator.wait_for_everyone()
    return found


def save_model(trainer: Any, tokenizer: Any, out: Path) -> None:
    """Write an ordinary checkpoint; a policy's adapter is merged into it and stands in `out`/adapter as well."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    with replacing_folder(out) as folder:
        if isinstance(model, PeftModel):
            if model.peft_type == "LORA" and model.active_peft_config.task_type == "CAUSAL_LM":
                _save_adapter(model, folder / ADAPTER)
            model = model.merge_and_unload()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _save_adapter(model: PeftModel, folder: Path) -> None:
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    file = folder / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    write_json(file, settings | {"base_model_name_or_path": None})  # a path of this machine


def _train(trainer: Any, checkpoint: Path | None) -> None:
    """Train from `checkpoint`; one that stands at the last step is only read."""
    if checkpoint is None:
        trainer.train()
        return
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    if state.global_step < state.max_steps:
        trainer.train(resume_from_checkpoint=str(checkpoint))
    else:
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state = state


def _orders(sampler: SortedSteps, steps: int) -> list[NDArray[np.int64]]:
    """The pairs of each epoch in the order in which `steps` optimiser steps saw them."""
    epochs, rest = divmod(steps, sampler.steps)
    orders = [sampler.order(epoch) for epoch in range(epochs)]
    return [*orders, sampler.order(epochs)[: rest * sampler.global_batch]]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
