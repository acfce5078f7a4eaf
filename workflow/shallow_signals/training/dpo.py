"""Direct preference optimisation: TRL's trainer with exact steps, less padding, shared prompts, no reference model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from shallow_signals.config.recipes import DPORecipe
from shallow_signals.files import InputError
from shallow_signals.models.attention import with_grouped_attention
from shallow_signals.models.load import load_causal_lm
from shallow_signals.models.logprob_files import read_settings
from shallow_signals.models.templates import Bos
from shallow_signals.models.tree import TOKEN_BUDGET
from shallow_signals.models.vocabulary import last_hidden, learned_logprobs
from shallow_signals.training.adapters import lora_config
from shallow_signals.training.fast import FastPairTrainer, as_pairs
from shallow_signals.training.pairs import PairIds, response_targets
from shallow_signals.training.references import Doubles, from_arrays, score_missing
from shallow_signals.training.resume import finished
from shallow_signals.training.runs import Run, complete_run, prepare_run
from shallow_signals.training.settings import compute_type

LN2 = math.log(2)


class FastDPOTrainer(FastPairTrainer, DPOTrainer):  # type: ignore[misc]
    """TRL's DPO trainer on tokenised pairs whose reference log-probabilities are known.

    The margin is beta ((log pi_c - log ref_c) - (log pi_r - log ref_r)). The data set has the columns of `read_pairs`
    and `reference`, [log ref_c, log ref_r]; `source` names where these come from. In the first step policy and
    reference are one model, so that each loss is ln 2: missing it by more than `tolerance` on average is refused.
    """

    def __init__(self, *, source: str, tolerance: float, **arguments: Any) -> None:
        super().__init__(data_collator=_as_pairs, **arguments)
        self.add_callback(_CheckFirstLoss(self))
        self._source, self._tolerance = source, tolerance
        self._missed = torch.zeros(2, dtype=torch.float64)  # pairs of the first step, sum of |loss - ln 2|

    def logps(self, model: nn.Module, pairs: Sequence[PairIds]) -> Tensor:
        """log p of the responses, closing included, under `model`; float64 [pairs, 2] with gradients.

        A thousand nats in float32 are off by more than the first log-ratios are.
        """
        batch = self.batch(pairs)
        width = batch.inputs["input_ids"].shape[1]
        targets = response_targets(pairs, self._share_prompt, width).to(self.accelerator.device)
        hidden = last_hidden(model, batch.inputs).flatten(0, 1)[targets.places]
        with self.accelerator.autocast():
            found = learned_logprobs(model, hidden, targets.where, targets.tokens)
        sums = torch.zeros(2 * len(pairs), dtype=torch.float64, device=found.device)
        return sums.index_add(0, targets.responses, found.double()).view(-1, 2)

    def margins(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """beta times the difference of the responses' log-ratios."""
        chosen, rejected = (self.logps(model, inputs["pairs"]) - inputs["reference"]).unbind(1)
        margins: Tensor = self.beta * (chosen - rejected).float()
        if self.state.global_step == 0:
            missed = (-nn.functional.logsigmoid(margins.detach()) - LN2).abs().sum().item()
            self._missed += torch.tensor([len(margins), missed], dtype=torch.float64)
        return margins

    def check_first_loss(self) -> None:
        """Raise `InputError`, on every process, if the first step's losses are not ln 2."""
        pairs, missed = self.accelerator.reduce(self._missed.to(self.accelerator.device)).tolist()
        if not missed <= self._tolerance * pairs:
            raise InputError(
                f"{self._source}: with these reference log-probabilities the first DPO losses miss ln 2 by "
                f"{missed / pairs:.3g} a pair (allowed: {self._tolerance:g}): they are of another model, chat template "
                "or set of tokens than the policy starts from; score the pairs with the base model again"
            )

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset  # tokenised already

    def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
        return dataset  # known already


class _CheckFirstLoss(TrainerCallback):  # type: ignore[misc]
    def __init__(self, trainer: FastDPOTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self.trainer.check_first_loss()


def _as_pairs(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return as_pairs(rows) | {"reference": torch.tensor([row["reference"] for row in rows], dtype=torch.float64)}


def train_dpo(
    shards: Path,
    base: Path,
    reference_logprobs: Path | None,
    recipe: DPORecipe,
    seed: int,
    out: Path,
    state: Path,
    *,
    bos: Bos = "auto",
) -> dict[str, Any]:
    """Train a policy from the causal LM at `base`, its own reference, on the train files in `shards`; write `out`.

    `reference_logprobs` is a file of one-pass log-probabilities of `base` on the full responses (the schema
    `models.logprob_files.LOGPROBS`): a pair that keeps the beginnings of its responses reads its reference off it.
    Other pairs are scored under `base` before training starts; so are all where it is None. With LoRA, `out` holds the
    merged weights and `out`/adapter the adapter alone. Resumption, facts and several processes are as in
    `training.reward.train_reward_model`; the facts also count the references read and scored.
    """
    if (facts := finished(state, out)) is not None:
        return facts
    run = prepare_run(shards, base, recipe, seed, state, bos)
    references = np.full((len(run.pairs), 2), np.nan)
    precise = compute_type(recipe) == "float32"
    if reference_logprobs is not None:
        references = from_arrays(shards, map(PairIds.from_row, run.pairs), run.closing, reference_logprobs)
        precise &= read_settings(reference_logprobs)["compute"] == "float32"
    read = int((~np.isnan(references[:, 0])).sum())
    trainer = FastDPOTrainer(
        model=with_grouped_attention(load_causal_lm(base, run.dtype, recipe.attention)),
        args=DPOConfig(**run.arguments, beta=recipe.beta, precompute_ref_log_probs=recipe.lora is None),
        peft_config=lora_config(recipe, "CAUSAL_LM"),
        source=str(reference_logprobs or base),
        tolerance=1e-3 if precise else _bfloat16_tolerance(run, recipe.beta),
        **run.trainer_arguments,
    )
    trainer.train_dataset = with_references(run.pairs, _scored(trainer, run, references))
    counts = {"references_read": read, "references_scored": len(run.pairs) - read}
    return complete_run(trainer, run, out, beta=recipe.beta, **counts)


def _bfloat16_tolerance(run: Run, beta: float) -> float:
    """Four times what a real model's first losses miss ln 2 by: rounding moves a pair by .05 nats a root of a token."""
    table = run.pairs.data.table
    tokens = sum(float(pc.mean(pc.list_value_length(table[f"{side}_ids"])).as_py()) for side in ("chosen", "rejected"))
    return 4 * beta / 2 * 0.05 * math.sqrt(tokens)


def with_references(pairs: datasets.Dataset, references: Doubles) -> datasets.Dataset:
    """The data set that `FastDPOTrainer` reads; `references` is [pairs, 2] in nats."""
    return pairs.add_column("reference", references.tolist())


def _scored(trainer: FastDPOTrainer, run: Run, references: Doubles) -> Doubles:
    """Score the pairs whose reference is not known yet under the model that training starts from."""
    accelerator = trainer.accelerator
    model = accelerator.unwrap_model(trainer.model).eval()
    lengths = run.rows * run.widths
    silent = not accelerator.is_local_main_process
    with tqdm(desc="reference log-probabilities", unit="token", unit_scale=True, disable=silent) as bar:

        def score(indices: Sequence[int]) -> Doubles:
            pairs = [PairIds.from_row(row) for row in run.pairs.select(indices)]
            with torch.inference_mode(), accelerator.autocast():
                found: Doubles = trainer.logps(model, pairs).cpu().numpy()
            bar.update(int(lengths[indices].sum()))
            return found

        return score_missing(
            score,
            lengths,
            references,
            run.state,
            token_budget=TOKEN_BUDGET[accelerator.device.type],
            part=(accelerator.process_index, accelerator.num_processes),
            wait=accelerator.wait_for_everyone,
        )
