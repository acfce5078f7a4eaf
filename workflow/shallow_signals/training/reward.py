"""Bradley-Terry reward models: TRL's trainer with exact steps, less padding and shared prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from trl import RewardConfig, RewardTrainer

from shallow_signals.config.recipes import RewardRecipe
from shallow_signals.models.heads import read_scores, token_scores
from shallow_signals.models.load import load_reward_model, load_tokenizer
from shallow_signals.models.templates import Bos, read_template
from shallow_signals.models.tree import refuse_unsupported
from shallow_signals.training.pairs import PairIds, batch_pairs, read_pairs, row_shapes
from shallow_signals.training.resume import (
    MarkComplete,
    finish,
    finished,
    naming_full_disk,
    newest_complete,
    whole_folder,
)
from shallow_signals.training.rounding import LostUpdates
from shallow_signals.training.settings import compute_type, processes, trainer_arguments
from shallow_signals.training.steps import SortedSteps, padded_tokens

HISTORY = ("loss", "accuracy", "margin", "learning_rate", "grad_norm")


class _FollowEpochs(TrainerCallback):  # type: ignore[misc]
    """Tells the sampler which epoch begins: accelerate's wrappers lose track when they skip what a resumed run did."""

    def __init__(self, sampler: SortedSteps) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.sampler.set_epoch(state.global_step // self.sampler.steps)


class FastRewardTrainer(RewardTrainer):  # type: ignore[misc]
    """TRL's reward trainer on tokenised pairs, with the loss of a whole optimiser step.

    `train_dataset` is what `read_pairs` returns, `sampler` the order of its pairs. Each micro-batch's loss is its sum
    over pairs divided by the pairs of the whole step (all micro-batches, all processes), so neither a short last
    micro-batch nor the order of the pairs within a step changes the gradient.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, *, sampler: SortedSteps, share_prompt: bool, **arguments: Any) -> None:
        super().__init__(data_collator=_as_pairs, **arguments)
        if share_prompt:
            refuse_unsupported(self.accelerator.unwrap_model(self.model))
        self.add_callback(_FollowEpochs(sampler))
        self._sampler = sampler
        self._share_prompt = share_prompt
        self._tally = torch.zeros(3, dtype=torch.float64)  # pairs, correct ones, sum of margins since the last log

    def _get_train_sampler(self, train_dataset: Any = None) -> SortedSteps:
        return self._sampler

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], int]:
        """The step's micro-batches on this process, and the number of pairs on all of them."""
        batches = list(islice(epoch_iterator, num_batches))
        pairs = sum(len(batch["pairs"]) for batch in batches)
        if self.accelerator.num_processes > 1:
            pairs = int(self.accelerator.reduce(torch.tensor(pairs, device=device)).item())
        return batches, pairs

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: int | None = None,
    ) -> Tensor:
        """Bradley-Terry loss, -log sigmoid(r_chosen - r_rejected): this micro-batch's share of the step's mean.

        Processes average their gradients, hence the factor of their number.
        """
        batch = batch_pairs(inputs["pairs"], self.processing_class.pad_token_id, self._share_prompt)
        place = self.accelerator.device
        scores: Tensor = token_scores(model, {name: value.to(place) for name, value in batch.inputs.items()})
        margins = read_scores(scores, batch.chosen) - read_scores(scores, batch.rejected)
        with torch.no_grad():
            found = torch.stack([(margins > 0).sum(), margins.sum()]).double()
            self._tally = self._tally.to(place) + torch.cat([found.new_tensor([len(batch)]), found])
        total = num_items_in_batch or len(batch)
        loss: Tensor = -nn.functional.logsigmoid(margins).sum() * (self.accelerator.num_processes / total)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add accuracy and margin over the pairs since the last entry."""
        pairs, correct, margin = self.accelerator.reduce(self._tally.to(self.accelerator.device)).tolist()
        if pairs:
            logs |= {"accuracy": correct / pairs, "margin": margin / pairs}
        self._tally.zero_()
        Trainer.log(self, logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        Trainer._save_checkpoint(self, model, trial)  # without TRL's model card in each state

    def _send_telemetry(self) -> None:
        """Nothing leaves the machine."""


def _as_pairs(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A micro-batch as pairs; it is laid out only when its turn comes, as masks of a whole step take memory."""
    return {"pairs": tuple(PairIds.from_row(row) for row in rows)}


def train_reward_model(
    shards: Path, base: Path, recipe: RewardRecipe, seed: int, out: Path, state: Path, *, bos: Bos = "auto"
) -> dict[str, Any]:
    """Train a reward model from the causal LM at `base` on the train files in `shards`; write a checkpoint to `out`.

    An interrupted run carries on from the newest complete state in `state`; one that has finished returns at once. A
    LoRA adapter is merged: `out` is an ordinary checkpoint with tokenizer and chat template. Returns the facts for
    the sidecar: steps, pairs, tokens (of all rows, and padding included), seconds, loss history, counts, device, types.
    Every process of a group started by torchrun calls this; all of them return the facts, the first one writes.
    """
    if (facts := finished(state, out)) is not None:
        return facts
    tokenizer = load_tokenizer(base)
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
    arguments = RewardConfig(**trainer_arguments(recipe, seed=seed, state=state, steps_per_epoch=sampler.steps))
    dtype = torch.bfloat16 if recipe.weights == "bfloat16" else torch.float32
    checkpoint, seconds_before = newest_complete(state)
    clock, rounding = MarkComplete(seconds_before), LostUpdates(every=arguments.logging_steps)
    trainer = FastRewardTrainer(
        model=load_reward_model(base, dtype, recipe.attention, finished=False, seed=seed),
        args=arguments,
        train_dataset=pairs,
        processing_class=tokenizer,
        peft_config=_lora(recipe),
        sampler=sampler,
        share_prompt=recipe.share_prompt,
        callbacks=[clock, *([rounding] if recipe.weights == "bfloat16" else [])],
    )
    with naming_full_disk(state):
        _train(trainer, checkpoint)
    steps = trainer.state.global_step
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    facts = {
        "steps": steps,
        "pairs": len(pairs),
        "pairs_seen": sum(len(order) for order in _orders(sampler, steps)),
        "dropped_per_epoch": sampler.dropped,
        "cut_on_the_left": cut_left,
        "tokens_per_epoch": tokens,
        "tokens_with_padding": sum(
            padded_tokens(order, recipe.micro_batch, recipe.global_batch, rows, widths)
            for order in _orders(sampler, steps)
        ),
        "seconds": round(clock.seconds, 1),
        "processes": processes(),
        "device": _device_name(trainer.accelerator.device),
        "weights": recipe.weights,
        "compute": compute_type(recipe),
        "optimizer": arguments.optim.value,
        "updates_lost_to_rounding": rounding.share,  # of bfloat16 weights, since the last resumption
        "first_loss": history[0]["loss"],
        "last_loss": history[-1]["loss"],
        "loss_history": [{key: entry[key] for key in ("step", *HISTORY) if key in entry} for entry in history],
    }
    with naming_full_disk(out.parent):
        if trainer.is_world_process_zero():
            _save(trainer, tokenizer, out)
            finish(state, facts)
    trainer.accelerator.wait_for_everyone()
    return facts


def _train(trainer: FastRewardTrainer, checkpoint: Path | None) -> None:
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


def _lora(recipe: RewardRecipe) -> LoraConfig | None:
    """An adapter on all linear layers; the new head is trained whole."""
    if recipe.lora is None:
        return None
    return LoraConfig(
        task_type="SEQ_CLS",
        target_modules="all-linear",
        modules_to_save=["score"],
        r=recipe.lora.rank,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
    )


def _save(trainer: FastRewardTrainer, tokenizer: Any, out: Path) -> None:
    model = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    with whole_folder(out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
