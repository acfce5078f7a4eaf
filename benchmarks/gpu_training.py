"""Training at the paper's sizes on one GPU, random weights: this project's trainers against stock TRL, in one run.

    python benchmarks/gpu_training.py                                  # reward model (Gemma-2B) and DPO (Llama-3-8B)
    python benchmarks/gpu_training.py --line reward --tokens results/paper/data/skywork/tokens/gemma_2b_it.parquet
    python benchmarks/gpu_training.py --toy                            # a CPU, seconds: that it runs, not how fast

The recipes are config.yaml's (`rlhflow_gemma_2b`, `trl_llama`), the shapes those under `planning`. Both sides train the
same pairs with the same recipe: bfloat16, SDPA, gradient checkpointing, micro-batch and global batch. Stock TRL takes
pairs in random order and pads them; here the pairs of a step are sorted and a prompt is read once. Lengths are those
of `--tokens`, else drawn around the sizes under `planning` (log-normal); ids are random. DPO's references are known on
both sides. Only optimiser steps are timed, after one step that is not.

tokens/s: of both texts of each pair, padding left out, so that the sides compare. MFU: model FLOPs (docs/planning.md)
of the rows that a side reads, padding left out, over the card's dense bfloat16 peak.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import yaml
from pair_training import Clock, StockDPOTrainer, smollm2
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GemmaConfig,
    LlamaConfig,
    PrinterCallback,
)
from trl import DPOConfig, RewardConfig, RewardTrainer

from shallow_signals.config.load import load_study
from shallow_signals.config.planning import ModelShape
from shallow_signals.config.recipes import Lora, Recipe
from shallow_signals.planning.lengths import Lengths, texts, training_rows
from shallow_signals.planning.shape import body_flops, parameters, vocabulary_flops
from shallow_signals.training.adapters import lora_config
from shallow_signals.training.dpo import FastDPOTrainer, with_references
from shallow_signals.training.pairs import cut_pair, row_shapes
from shallow_signals.training.reward import FastRewardTrainer
from shallow_signals.training.settings import trainer_arguments
from shallow_signals.training.steps import SortedSteps

ROOT = Path(__file__).resolve().parents[1]
PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}  # dense bfloat16
TOY = ModelShape(hidden=64, layers=2, intermediate=128, heads=4, kv_heads=2, head_dim=16, vocabulary=512, tied=False)
LINES = {"reward": ("gemma_2b_it", "rlhflow_gemma_2b"), "dpo": ("llama31_8b_instruct", "trl_llama")}


def main() -> None:
    """Measure and print one Markdown table."""
    options = arguments()
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    peak = next((flops for name, flops in PEAKS.items() if name in where), None)
    print(f"{where}, torch {torch.__version__}{', toy size: no figure means anything' if options.toy else ''}\n")
    print("| line | side | pairs/s | tokens/s | MFU | peak memory, GB | ratio to stock |")
    print("|---|---|---|---|---|---|---|")
    for line in LINES if options.line == "both" else (options.line,):
        shape, recipe, lengths = setting(line, options)
        pairs = random_pairs(lengths, recipe, shape.vocabulary)
        speeds: dict[str, float] = {}
        for side in ("stock", "here"):
            seconds, memory = measure(line, side, shape, recipe, pairs)
            speeds[side] = len(lengths.prompt) / seconds
            useful = sum(float(part.sum()) for part in texts(lengths, lengths.closing, recipe.max_length))
            reached = model_flops(line, side, shape, recipe, lengths) / seconds
            mfu = f"{reached / peak:.1%}" if peak else "-"
            held = f"{memory / 1e9:.1f}" if memory else "-"
            ratio = f"{speeds[side] / speeds['stock']:.2f}"
            print(f"| {line} | {side} | {speeds[side]:.2f} | {useful / seconds:,.0f} | {mfu} | {held} | {ratio} |")


def setting(line: str, options: argparse.Namespace) -> tuple[ModelShape, Recipe, Lengths]:
    """Shape, recipe and lengths of a line."""
    study = load_study(yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8")))
    model, name = LINES[line]
    recipe: Recipe = {**study.reward_recipes, **study.dpo_recipes}[name]
    changes: dict[str, Any] = {"micro_batch": options.micro_batch} if options.micro_batch else {}
    if options.lora:
        changes["lora"] = Lora(rank=options.lora)
    if options.toy:
        changes |= {"global_batch": 8, "micro_batch": 4, "max_length": 128, "optimizer": "adamw_torch"}
    recipe = recipe.model_copy(update=changes)
    count = options.steps * recipe.global_batch
    size = study.planning.datasets["skywork"]
    scale = 0.1 if options.toy else 1.0
    lengths = (
        stored_lengths(options.tokens, count)
        if options.tokens
        else drawn_lengths(size.prompt * scale, size.response * scale, count)
    )
    return TOY if options.toy else study.planning.models[model], recipe, lengths


def drawn_lengths(prompt: float, response: float, count: int) -> Lengths:
    """Log-normal, as wide as those of real conversations are (a standard deviation of about 0.8 in the logarithm)."""
    draw = np.random.default_rng(0)
    spread = 0.8
    columns = [
        np.maximum(2, np.round(draw.lognormal(np.log(mean) - spread**2 / 2, spread, count)))
        for mean in (prompt, response, response)
    ]
    return Lengths(*columns, count, 1)  # type: ignore[misc]


def stored_lengths(path: Path, count: int) -> Lengths:
    """Of the first pairs of a tokens file."""
    table = pq.read_table(path, columns=["prompt_ids", "chosen_ids", "rejected_ids"]).slice(0, count)
    if table.num_rows < count:
        raise SystemExit(f"{path}: holds {table.num_rows} pairs, {count} are needed; ask for fewer --steps")
    prompt, chosen, rejected = (pc.list_value_length(column).to_numpy().astype(float) for column in table.columns)
    return Lengths(prompt, chosen, rejected, count, 1)


def random_pairs(lengths: Lengths, recipe: Recipe, vocabulary: int) -> datasets.Dataset:
    """Pairs of random ids, cut and closed: the columns that training reads."""
    draw = np.random.default_rng(1)
    rows = []
    for sizes in zip(lengths.prompt, lengths.chosen, lengths.rejected, strict=True):
        ids = [draw.integers(3, vocabulary, int(size)).tolist() for size in sizes]
        pair = cut_pair(*ids, [2] * lengths.closing, recipe.max_length)
        rows.append((pair.prompt, pair.chosen, pair.rejected, pair.rejected_prompt))
    names = ("prompt_ids", "chosen_ids", "rejected_ids", "rejected_prompt_ids")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    features = datasets.Features(dict.fromkeys(names, datasets.Sequence(datasets.Value("int32"))))
    return datasets.Dataset.from_dict(columns, features)


def model_flops(line: str, side: str, shape: ModelShape, recipe: Recipe, lengths: Lengths) -> float:
    """Of one side's rows, padding and recomputation left out."""
    rows = training_rows(lengths, lengths.closing, recipe.max_length, share_prompt=side == "here")
    forward = body_flops(shape, rows)
    if line == "dpo":
        forward += vocabulary_flops(shape, float((lengths.chosen + lengths.rejected + 2 * lengths.closing).sum()))
    return (2.0 if recipe.lora else 3.0) * forward


def measure(line: str, side: str, shape: ModelShape, recipe: Recipe, pairs: datasets.Dataset) -> tuple[float, float]:
    """Seconds of one pass over `pairs` after a step of warm-up, and the most bytes of GPU memory held."""
    clock = Clock("wall")
    for part, watch in ((pairs.select(range(recipe.global_batch)), Clock("wall")), (pairs, clock)):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(line, side, shape, recipe, part, Path(folder))
            trainer.add_callback(watch)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            del trainer
    return clock.seconds, float(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0.0


def make_trainer(line: str, side: str, shape: ModelShape, recipe: Recipe, pairs: datasets.Dataset, folder: Path) -> Any:
    """One side's trainer with fresh random weights."""
    steps = -(-len(pairs) // recipe.global_batch)
    common = trainer_arguments(recipe, seed=0, state=folder, steps_per_epoch=steps)
    common |= {"save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no", "logging_first_step": False}
    known = {"beta": 0.1, "precompute_ref_log_probs": recipe.lora is None} if line == "dpo" else {}
    task = "CAUSAL_LM" if line == "dpo" else "SEQ_CLS"
    parts = {
        "model": random_model(line, shape, recipe),
        "args": (DPOConfig if line == "dpo" else RewardConfig)(**common, **known),
        "processing_class": smollm2(),
        "peft_config": lora_config(recipe, task, trained_whole=None if line == "dpo" else ["score"]),
    }
    if side == "here":
        widths = row_shapes(pairs, recipe.share_prompt)[1]
        order = partial(SortedSteps, global_batch=recipe.global_batch, micro_batch=recipe.micro_batch, seed=0)
        parts |= {"sampler": order(widths, sort=recipe.sort_in_step), "share_prompt": recipe.share_prompt}
        if line == "reward":
            return FastRewardTrainer(train_dataset=pairs, **parts)
        data = with_references(pairs, np.zeros((len(pairs), 2)))  # any numbers cost the same
        return FastDPOTrainer(train_dataset=data, source="", tolerance=float("inf"), **parts)
    sides = pairs.remove_columns("rejected_prompt_ids").to_list()
    if line == "reward":
        whole = [{name: row["prompt_ids"] + row[name] for name in ("chosen_ids", "rejected_ids")} for row in sides]
        return RewardTrainer(train_dataset=datasets.Dataset.from_list(whole), **parts)
    references = dict.fromkeys(("ref_chosen_logps", "ref_rejected_logps"), 0.0)
    return StockDPOTrainer(train_dataset=datasets.Dataset.from_list([row | references for row in sides]), **parts)


def random_model(line: str, shape: ModelShape, recipe: Recipe) -> Any:
    """Random weights of the paper's architecture in the recipe's type, made on the device that will train them."""
    names = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": shape.tied,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "num_labels": 1,
        "use_cache": False,
    }
    config = (GemmaConfig if line == "reward" else LlamaConfig)(**names)
    kind = AutoModelForSequenceClassification if line == "reward" else AutoModelForCausalLM
    dtype = torch.bfloat16 if recipe.weights == "bfloat16" else torch.float32
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = kind.from_config(config, attn_implementation=recipe.attention, dtype=dtype)
    expected = parameters(shape, reward_model=line == "reward")
    if model.num_parameters() != expected:
        raise SystemExit(f"the model has {model.num_parameters():,} parameters, its shape says {expected:,}")
    return model


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--line", choices=[*LINES, "both"], default="both")
    parser.add_argument("--tokens", type=Path, help="a tokens file of a run, for its lengths")
    parser.add_argument("--steps", type=int, default=2, help="optimiser steps of a global batch")
    parser.add_argument("--micro-batch", type=int, help="pairs of a forward pass; without it the recipe's")
    parser.add_argument("--lora", type=int, help="train an adapter of this rank instead of all weights")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, for a CPU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
