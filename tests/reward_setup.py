"""What tests of reward-model training share: small pairs, a trainer on them, and the plain way to their gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from trl import RewardConfig

from shallow_signals.config.recipes import RewardRecipe
from shallow_signals.files import write_parquet
from shallow_signals.models.load import load_reward_model, load_tokenizer
from shallow_signals.training.pairs import PairIds, row_shapes
from shallow_signals.training.reward import FastRewardTrainer
from shallow_signals.training.settings import processes, trainer_arguments
from shallow_signals.training.steps import SortedSteps

Gradients = dict[str, Tensor]


def random_pairs(count: int, seed: int = 0, closing: Sequence[int] = (3, 4)) -> list[PairIds]:
    """Pairs of every awkward kind first: an empty prompt, one-token responses, prompts that a cut made unequal."""
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> list[int]:
        return rng.integers(260, 450, rng.integers(low, high)).tolist()

    close = list(closing)
    pairs = [
        PairIds([], ids(4, 5) + close, ids(9, 10) + close),
        PairIds(ids(6, 7), ids(1, 2), ids(1, 2)),
        PairIds((long := ids(8, 9)), ids(5, 6) + close, ids(12, 13) + close, long[4:]),
    ]
    pairs += [PairIds(ids(3, 20), ids(3, 30) + close, ids(3, 30) + close) for _ in range(count - len(pairs))]
    return pairs[:count]


def as_dataset(pairs: Sequence[PairIds]) -> datasets.Dataset:
    """What `read_pairs` would make of these pairs."""
    columns = {
        "prompt_ids": [pair.prompt for pair in pairs],
        "chosen_ids": [pair.chosen for pair in pairs],
        "rejected_ids": [pair.rejected for pair in pairs],
        "rejected_prompt_ids": [pair.rejected_prompt for pair in pairs],
    }
    features = datasets.Features(dict.fromkeys(columns, datasets.Sequence(datasets.Value("int32"))))
    return datasets.Dataset.from_dict(columns, features)


def write_shards(folder: Path, pairs: Sequence[PairIds]) -> Path:
    """A folder of shards with the columns that training reads."""
    table = pa.table(
        {
            "prompt_tokens": [list(pair.prompt) for pair in pairs],
            "chosen_tokens": [list(pair.chosen) for pair in pairs],
            "rejected_tokens": [list(pair.rejected) for pair in pairs],
        }
    )
    half = table.num_rows // 2
    write_parquet(folder / "train-00000.parquet", table.slice(0, half))
    write_parquet(folder / "train-00001.parquet", table.slice(half))
    return folder


def recipe(**changes: Any) -> RewardRecipe:
    """Steps of 16 pairs in micro-batches of 4, float32, no clipping."""
    settings: dict[str, Any] = {"learning_rate": 1e-3, "global_batch": 16, "micro_batch": 4, "max_length": 64}
    settings |= {"compute": "float32", "max_grad_norm": 0.0, "warmup_ratio": 0.0}
    return RewardRecipe(**{**settings, **changes})


class CatchGradients(TrainerCallback):  # type: ignore[misc]
    """Keeps the gradients of each optimiser step."""

    def __init__(self) -> None:
        self.steps: list[Gradients] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:
        self.steps.append(gradients_of(model))


def gradients_of(model: nn.Module) -> Gradients:
    """A copy of the gradients, by name."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def trainer_on(base: Path, pairs: Sequence[PairIds], settings: RewardRecipe, folder: Path) -> FastRewardTrainer:
    """The fast trainer with the model at `base` (its head drawn from seed 0)."""
    data = as_dataset(pairs)
    _, widths, _ = row_shapes(data, settings.share_prompt)
    sampler = SortedSteps(
        widths,
        global_batch=settings.global_batch,
        micro_batch=settings.micro_batch,
        processes=processes(),
        seed=0,
        sort=settings.sort_in_step,
    )
    arguments = trainer_arguments(settings, seed=0, state=folder, steps_per_epoch=sampler.steps)
    arguments |= {"save_strategy": "no", "disable_tqdm": True}
    return FastRewardTrainer(
        model=load_reward_model(base, attention=settings.attention, finished=False),
        args=RewardConfig(**arguments),
        train_dataset=data,
        processing_class=load_tokenizer(base),
        sampler=sampler,
        share_prompt=settings.share_prompt,
    )


def fast_gradients(base: Path, pairs: Sequence[PairIds], settings: RewardRecipe, folder: Path) -> Gradients:
    """The gradients of the first optimiser step of a training run."""
    trainer = trainer_on(base, pairs, settings, folder)
    trainer.add_callback(catch := CatchGradients())
    trainer.train()
    return catch.steps[0]


def plain_scores(model: nn.Module, texts: Sequence[Sequence[int]], pad_id: int = 0) -> Tensor:
    """Scores [texts] at each text's last real token, from one padded batch with the ordinary mask."""
    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[pad_id] * (width - len(text))] for text in texts])
    lengths = torch.tensor([len(text) for text in texts])
    mask = (torch.arange(width) < lengths[:, None]).long()
    hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state  # type: ignore[operator, union-attr]
    scores: Tensor = model.score(hidden[torch.arange(len(texts)), lengths - 1])[:, 0]  # type: ignore[operator]
    return scores


def both_texts(pair: PairIds) -> tuple[list[int], list[int]]:
    """Prompt and response of each side as one list."""
    other = pair.prompt if pair.rejected_prompt is None else pair.rejected_prompt
    return [*pair.prompt, *pair.chosen], [*other, *pair.rejected]


def plain_gradients(base: Path, pairs: Sequence[PairIds]) -> Gradients:
    """The gradient of the mean loss over one padded batch of all pairs."""
    model = load_reward_model(base, finished=False).train()
    texts = [both_texts(pair) for pair in pairs]
    scores = plain_scores(model, [chosen for chosen, _ in texts] + [rejected for _, rejected in texts])
    chosen, rejected = scores.chunk(2)
    (-nn.functional.logsigmoid(chosen - rejected)).mean().backward()
    return gradients_of(model)


def difference(one: Gradients, other: Gradients) -> float:
    """The largest difference of a parameter's gradient, relative to the norm of that gradient."""
    assert one.keys() == other.keys()
    return max(((one[name] - other[name]).norm() / other[name].norm()).item() for name in other)


def planted(count: int) -> list[PairIds]:
    """Chosen responses hold token 301 somewhere, rejected ones hold 302 instead."""
    pairs = random_pairs(count + 3, seed=3, closing=())[3:]
    return [replace(pair, chosen=[*pair.chosen, 301], rejected=[*pair.rejected, 302]) for pair in pairs]
