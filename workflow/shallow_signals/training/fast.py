"""What the trainers of reward models and of DPO share: exact optimiser steps over sorted pairs, and their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from shallow_signals.models.tree import refuse_unsupported, row_length
from shallow_signals.training.adapters import added_once
from shallow_signals.training.pairs import PairBatch, PairIds, batch_pairs, pair_rows
from shallow_signals.training.steps import SortedSteps, balanced


class FastPairTrainer:
    """Goes in front of a TRL trainer whose loss is -log sigmoid of one margin a pair.

    `train_dataset` is what `read_pairs` returns, `sampler` the order of its pairs. Each micro-batch's loss is its sum
    over pairs divided by the pairs of the whole step (all micro-batches, all processes), so neither the sizes of the
    micro-batches nor the order of the pairs within a step change the gradient. Sorted ones cost about the same
    each; they need not hold equally many pairs.
    """

    loss_is_scaled_for_ga = True
    accelerator: Any
    model: Any
    processing_class: Any
    state: Any

    def __init__(self, *, sampler: SortedSteps, share_prompt: bool, **arguments: Any) -> None:
        super().__init__(**{"data_collator": as_pairs, **arguments})
        if share_prompt:
            refuse_unsupported(self.accelerator.unwrap_model(self.model))
        self.add_callback(_FollowEpochs(sampler))  # type: ignore[attr-defined]
        self._sampler = sampler
        self._share_prompt = share_prompt
        self._tally = torch.zeros(3, dtype=torch.float64)  # pairs, correct ones, sum of margins since the last log

    def train(self, *arguments: Any, **settings: Any) -> Any:
        """TRL's training; what an adapter adds takes fewer passes than peft's (`adapters.AddedOnce`)."""
        with added_once(self.model):
            return super().train(*arguments, **settings)  # type: ignore[misc]

    def margins(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """The micro-batch's margins of chosen over rejected, float32 [pairs], with gradients."""
        raise NotImplementedError

    def batch(self, pairs: Sequence[PairIds]) -> PairBatch:
        """A micro-batch laid out on the trainer's device."""
        batch = batch_pairs(pairs, self.processing_class.pad_token_id, self._share_prompt)
        batch.inputs.update({name: value.to(self.accelerator.device) for name, value in batch.inputs.items()})
        return batch

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: int | None = None,
    ) -> Tensor:
        """-log sigmoid(margin): this micro-batch's share of the step's mean.

        Processes average their gradients, hence the factor of their number.
        """
        margins = self.margins(model, inputs)
        with torch.no_grad():
            found = torch.stack([(margins > 0).sum(), margins.sum()]).double()
            self._tally = self._tally.to(found.device) + torch.cat([found.new_tensor([len(margins)]), found])
        total = num_items_in_batch or len(margins)
        loss: Tensor = -nn.functional.logsigmoid(margins).sum() * (self.accelerator.num_processes / total)
        return loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], int]:
        """The step's micro-batches on this process, and the number of pairs on all of them."""
        batches = list(islice(epoch_iterator, num_batches))
        if self._sampler.sort:
            batches = self._balanced(batches)
        pairs = sum(len(batch["pairs"]) for batch in batches)
        if self.accelerator.num_processes > 1:
            pairs = int(self.accelerator.reduce(torch.tensor(pairs, device=device)).item())
        return batches, pairs

    def _balanced(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same pairs in as many micro-batches, cut where the largest of them is smallest."""
        pairs = [pair for batch in batches for pair in batch["pairs"]]
        shapes = [[row_length(row) for row in pair_rows(pair, self._share_prompt)] for pair in pairs]
        starts = balanced([len(shape) for shape in shapes], [max(shape) for shape in shapes], len(batches))
        together = {
            name: torch.cat([batch[name] for batch in batches]) if isinstance(value, Tensor) else tuple(pairs)
            for name, value in batches[0].items()
        }
        return [
            {name: values[start:end] for name, values in together.items()}
            for start, end in pairwise([*starts, len(pairs)])
        ]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add accuracy and margin over the pairs since the last entry."""
        pairs, correct, margin = self.accelerator.reduce(self._tally.to(self.accelerator.device)).tolist()
        if pairs:
            logs |= {"accuracy": correct / pairs, "margin": margin / pairs}
        self._tally.zero_()
        Trainer.log(self, logs, start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> SortedSteps:
        return self._sampler

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        Trainer._save_checkpoint(self, model, trial)  # without TRL's model card in each state

    def _send_telemetry(self) -> None:
        """Nothing leaves the machine."""


def as_pairs(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A micro-batch as pairs; it is laid out only when its turn comes, as masks of a whole step take memory."""
    return {"pairs": tuple(PairIds.from_row(row) for row in rows)}


class _FollowEpochs(TrainerCallback):  # type: ignore[misc]
    """Tells the sampler which epoch begins: accelerate's wrappers lose track when they skip what a resumed run did."""

    def __init__(self, sampler: SortedSteps) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.sampler.set_epoch(state.global_step // self.sampler.steps)
