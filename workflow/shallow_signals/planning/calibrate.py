"""How fast this machine is: some seconds of training and of scoring with random weights of the run's shape.

What is read are batches of pairs as long, and as different in length, as the run's own: a batch of pairs that all have
the mean length goes through a CPU a third faster.
"""

from __future__ import annotations

import multiprocessing
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from shallow_signals.config.planning import ModelShape
from shallow_signals.config.recipes import Recipe
from shallow_signals.models.attention import with_grouped_attention
from shallow_signals.models.heads import read_scores, token_scores
from shallow_signals.models.load import pick_device
from shallow_signals.models.tree import row_length
from shallow_signals.planning.lengths import Lengths
from shallow_signals.planning.shape import body_flops, passes_of
from shallow_signals.training.pairs import PairBatch, PairIds, batch_pairs, pair_rows
from shallow_signals.training.settings import compute_type
from shallow_signals.training.steps import balanced

Pair = tuple[int, int, int]  # tokens of a prompt and of its two responses


@dataclass(frozen=True)
class Speed:
    """Of one kind of work."""

    tokens: float  # a second, padding left out
    flops: float  # model FLOPs a second, likewise


@dataclass(frozen=True)
class Machine:
    """What was measured here, of all jobs that run side by side together."""

    training: Speed
    scoring: Speed
    jobs: int = 1
    start: float = 0.0  # seconds until a new process has its libraries and a model


def typical_pairs(lengths: Lengths, count: int, longest: int) -> list[Pair]:
    """Tokens of prompt, chosen and rejected of `count` pairs, each part at most `longest`: at even ranks of length."""
    parts = np.stack([lengths.prompt, lengths.chosen, lengths.rejected], axis=1)
    ranked = parts[np.argsort(parts.sum(1), kind="stable")]
    rows = ranked[((np.arange(count) + 0.5) * len(ranked) / count).astype(int)]
    return [(int(p), int(c), int(r)) for p, c, r in np.clip(rows.round(), 1, longest)]


def calibrate_jobs(shape: ModelShape, recipe: Recipe, pairs: Sequence[Pair], jobs: int) -> Machine:
    """`calibrate` as a run goes: `jobs` new processes of one thread side by side; on a GPU one process."""
    if pick_device().type == "cuda":
        return calibrate(shape, recipe, pairs)
    spawn, threads = multiprocessing.get_context("spawn"), 1 if jobs > 1 else torch.get_num_threads()
    with ProcessPoolExecutor(jobs, spawn, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        since = time.time()  # comparable between processes
        tasks = [pool.submit(calibrate, shape, recipe, pairs, since=since) for _ in range(jobs)]
        found = [task.result() for task in tasks]
    return Machine(
        training=_together([machine.training for machine in found]),
        scoring=_together([machine.scoring for machine in found]),
        jobs=jobs,
        start=max(machine.start for machine in found),
    )


def _together(speeds: list[Speed]) -> Speed:
    return Speed(sum(speed.tokens for speed in speeds), sum(speed.flops for speed in speeds))


def calibrate(
    shape: ModelShape, recipe: Recipe, pairs: Sequence[Pair], seconds: float = 20.0, since: float | None = None
) -> Machine:
    """Run a reward model of `shape` as `recipe` trains it for half of `seconds`, and score with it for the other half.

    `pairs` make one global batch, in micro-batches as the recipe says; AdamW's step on it is part of the training. The
    start is counted from `since` (seconds of `time.time`), where given.
    """
    from shallow_signals.training.adapters import added_once

    device = pick_device()
    model = random_reward_model(shape, recipe).to(device)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-6)
    batches = micro_batches(shape, recipe, pairs, device)
    dtype = torch.bfloat16 if compute_type(recipe) == "bfloat16" else torch.float32
    cast = torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16)

    def margins(batch: PairBatch) -> torch.Tensor:
        with cast:
            scores = token_scores(model, batch.inputs)
        return read_scores(scores, batch.chosen) - read_scores(scores, batch.rejected)

    def train(batch: PairBatch) -> None:
        (-nn.functional.logsigmoid(margins(batch))).mean().backward()  # type: ignore[no-untyped-call]
        if batch is batches[-1].pairs:
            optimizer.step()
            optimizer.zero_grad()

    def score(batch: PairBatch) -> None:
        with torch.inference_mode():
            margins(batch).sum().item()

    start = 0.0 if since is None else time.time() - since
    with added_once(model):
        training, scoring = (_speed(step, batches, device, seconds / 2) for step in (train, score))
    training = Speed(training.tokens, passes_of(recipe, shape.layers) * training.flops)
    return Machine(training=training, scoring=scoring, start=start)


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch, and what it is without its padding."""

    pairs: PairBatch
    tokens: float
    flops: float  # of one forward pass


def micro_batches(shape: ModelShape, recipe: Recipe, pairs: Sequence[Pair], device: torch.device) -> list[MicroBatch]:
    """The micro-batches of one step, the longest pair first."""
    draw = np.random.default_rng(0)
    ordered = [
        PairIds(*(draw.integers(0, shape.vocabulary, tokens).tolist() for tokens in pair))
        for pair in sorted(pairs, key=sum, reverse=True)
    ]
    shapes = [[row_length(row) for row in pair_rows(pair, recipe.share_prompt)] for pair in ordered]
    parts = -(-len(ordered) // recipe.micro_batch)
    starts = balanced([len(rows) for rows in shapes], [max(rows) for rows in shapes], parts)
    made = []
    for start, end in pairwise([*starts, len(ordered)]):
        batch = batch_pairs(ordered[start:end], 0, recipe.share_prompt)
        batch.inputs.update({name: value.to(device) for name, value in batch.inputs.items()})
        widths = np.array([width for rows in shapes[start:end] for width in rows], dtype=float)
        made.append(MicroBatch(batch, float(widths.sum()), body_flops(shape, widths)))
    return made


def random_reward_model(shape: ModelShape, recipe: Recipe) -> Any:
    """Random weights of a shape with a reward model's head, as a recipe trains them (all, or an adapter)."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from shallow_signals.training.adapters import keep_adapter_precise, lora_config

    model = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            tie_word_embeddings=shape.tied,
            pad_token_id=0,
            num_labels=1,
            attn_implementation=recipe.attention,
        )
    )
    model = with_grouped_attention(model)
    kept = compute_type(recipe) if recipe.lora else recipe.weights
    model = model.to(torch.bfloat16 if kept == "bfloat16" else torch.float32)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    adapter = lora_config(recipe, "SEQ_CLS", trained_whole=["score"])
    if adapter is not None:
        from peft import get_peft_model

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is going away
            model = get_peft_model(model, adapter)
        if compute_type(recipe) == "bfloat16":
            keep_adapter_precise(model)
    return model.train()


def _speed(
    step: Callable[[PairBatch], None], batches: Sequence[MicroBatch], device: torch.device, seconds: float
) -> Speed:
    """Of one batch after another in a drawn order; what the first call allocates and compiles is left out."""

    def run(batch: MicroBatch) -> None:
        step(batch.pairs)
        if device.type == "cuda":
            torch.cuda.synchronize()

    run(batches[0])
    order = cycle(np.random.default_rng(0).permutation(len(batches)))
    started, tokens, flops = time.monotonic(), 0.0, 0.0
    while not tokens or time.monotonic() - started < seconds:
        batch = batches[next(order)]
        run(batch)
        tokens, flops = tokens + batch.tokens, flops + batch.flops
    spent = time.monotonic() - started
    return Speed(tokens / spent, flops / spent)
