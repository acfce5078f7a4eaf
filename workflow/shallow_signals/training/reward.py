"""Bradley-Terry reward models: TRL's trainer with exact steps, less padding and shared prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from trl import RewardConfig, RewardTrainer

from shallow_signals.config.recipes import RewardRecipe
from shallow_signals.models.attention import with_grouped_attention
from shallow_signals.models.heads import read_scores, token_scores
from shallow_signals.models.load import load_reward_model
from shallow_signals.models.templates import Bos
from shallow_signals.training.adapters import lora_config
from shallow_signals.training.fast import FastPairTrainer
from shallow_signals.training.resume import finished
from shallow_signals.training.runs import complete_run, prepare_run


class FastRewardTrainer(FastPairTrainer, RewardTrainer):  # type: ignore[misc]
    """TRL's reward trainer on tokenised pairs; the margin is r_chosen - r_rejected."""

    def margins(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """The difference of scores, each read at its response's last token."""
        batch = self.batch(inputs["pairs"])
        scores = token_scores(model, batch.inputs)
        return read_scores(scores, batch.chosen) - read_scores(scores, batch.rejected)


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
    run = prepare_run(shards, base, recipe, seed, state, bos)
    trainer = FastRewardTrainer(
        model=with_grouped_attention(load_reward_model(base, run.dtype, recipe.attention, finished=False, seed=seed)),
        args=RewardConfig(**run.arguments),
        peft_config=lora_config(recipe, "SEQ_CLS", trained_whole=["score"]),  # the new head
        **run.trainer_arguments,
    )
    return complete_run(trainer, run, out)
