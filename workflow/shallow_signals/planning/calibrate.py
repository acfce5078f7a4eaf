"""How fast this machine is: some seconds of training and of scoring with random weights of the run's shape."""

from __future__ import annotations

import multiprocessing
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from shallow_signals.config.planning import ModelShape
from shallow_signals.config.recipes import Recipe
from shallow_signals.models.load import pick_device
from shallow_signals.planning.shape import body_flops, passes_of
from shallow_signals.training.settings import compute_type


@dataclass(frozen=True)
class Speed:
    """Of one kind of work."""

    tokens: float  # a second
    flops: float  # model FLOPs a second


@dataclass(frozen=True)
class Machine:
    """What was measured here, of all jobs that run side by side together."""

    training: Speed
    scoring: Speed
    jobs: int = 1
    start: float = 0.0  # seconds until a new process has its libraries and a model


def calibrate_jobs(shape: ModelShape, recipe: Recipe, pair: tuple[int, int, int], jobs: int) -> Machine:
    """`calibrate` as a run goes: `jobs` new processes of one thread side by side; on a GPU one process."""
    if pick_device().type == "cuda":
        return calibrate(shape, recipe, pair)
    spawn, threads = multiprocessing.get_context("spawn"), 1 if jobs > 1 else torch.get_num_threads()
    with ProcessPoolExecutor(jobs, spawn, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        since = time.time()  # comparable between processes
        tasks = [pool.submit(calibrate, shape, recipe, pair, since=since) for _ in range(jobs)]
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
    shape: ModelShape, recipe: Recipe, pair: tuple[int, int, int], seconds: float = 20.0, since: float | None = None
) -> Machine:
    """Run a reward model of `shape` as `recipe` trains it for half of `seconds`, and score with it for the other half.

    `pair` holds the tokens of a prompt and of its two responses. They share the prompt or not, as the recipe says;
    AdamW steps are part of the training. The start is counted from `since` (seconds of `time.time`), where given.
    """
    from shallow_signals.training.pairs import PairIds, batch_pairs

    device = pick_device()
    model = random_reward_model(shape, recipe).to(device)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-6)
    draw = np.random.default_rng(0)

    def ids(count: int) -> list[int]:
        return [int(number) for number in draw.integers(0, shape.vocabulary, count)]

    prompt, chosen, rejected = pair
    pairs = [PairIds(ids(prompt), ids(chosen), ids(rejected)) for _ in range(recipe.micro_batch)]
    batch = batch_pairs(pairs, 0, recipe.share_prompt)
    batch.inputs.update({name: value.to(device) for name, value in batch.inputs.items()})
    dtype = torch.bfloat16 if compute_type(recipe) == "bfloat16" else torch.float32
    cast = torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16)
    rows, width = batch.inputs["input_ids"].shape
    forward = body_flops(shape, np.full(rows, float(width)))

    def margins() -> torch.Tensor:
        from shallow_signals.models.heads import read_scores, token_scores

        with cast:
            scores = token_scores(model, batch.inputs)
        return read_scores(scores, batch.chosen) - read_scores(scores, batch.rejected)

    def train() -> None:
        (-nn.functional.logsigmoid(margins())).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    def score() -> None:
        with torch.inference_mode():
            margins().sum().item()

    start = 0.0 if since is None else time.time() - since
    training, scoring = (_rate(step, device, seconds / 2) for step in (train, score))
    return Machine(
        training=Speed(rows * width * training, passes_of(recipe, shape.layers) * forward * training),
        scoring=Speed(rows * width * scoring, forward * scoring),
        start=start,
    )


def random_reward_model(shape: ModelShape, recipe: Recipe) -> Any:
    """Random weights of a shape with a reward model's head, as a recipe trains them (all, or an adapter)."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from shallow_signals.training.runs import keep_adapter_precise, lora_config

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


def _rate(step: Callable[[], None], device: torch.device, seconds: float) -> float:
    """Steps a second, the first one (which allocates and compiles) left out; at least one is timed."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()
    wait()
    started, done = time.monotonic(), 0
    while not done or time.monotonic() - started < seconds:
        step()
        wait()
        done += 1
    return done / (time.monotonic() - started)
