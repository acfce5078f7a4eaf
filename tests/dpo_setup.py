"""What tests of DPO share: conversations through the real pipeline, plain log-probabilities, and stock TRL."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl import DPOConfig, DPOTrainer

import checkpoints
import realdata
import reward_setup as setup
from shallow_signals.config.recipes import DPORecipe
from shallow_signals.config.truncation import parse
from shallow_signals.data import shards
from shallow_signals.files import write_parquet
from shallow_signals.models.load import load_causal_lm, load_tokenizer
from shallow_signals.models.tokens import tokenize_pairs
from shallow_signals.training.dpo import FastDPOTrainer, with_references
from shallow_signals.training.pairs import PairIds, row_shapes
from shallow_signals.training.settings import processes, trainer_arguments
from shallow_signals.training.steps import SortedSteps

WORDS = [word for word in " ".join(checkpoints.TEXT).split() if word.isascii()]  # a cut falls on the asked token


def recipe(**changes: Any) -> DPORecipe:
    """Steps of 16 pairs in micro-batches of 4, float32, no clipping; a beta that lets margins matter."""
    settings: dict[str, Any] = {"learning_rate": 1e-3, "global_batch": 16, "micro_batch": 4, "max_length": 256}
    settings |= {"compute": "float32", "max_grad_norm": 0.0, "warmup_ratio": 0.0, "beta": 0.5}
    return DPORecipe(**{**settings, **changes})


def conversations(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Stored training pairs whose chosen responses hold the word `Rome`, the rejected ones `boats`."""
    draw = random.Random(seed)

    def words(low: int, high: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))

    return [
        realdata.pair_row(
            [{"role": "user", "content": words(2, 12)}],
            f"{words(1, 12)} Rome {words(0, 6)}".strip(),
            f"{words(1, 12)} boats {words(0, 6)}".strip(),
            split="train",
        )
        for _ in range(count)
    ]


def tokens_file(base: Path, rows: list[dict[str, Any]], folder: Path) -> Path:
    """Pairs and their tokens in `folder`; the path of the tokens."""
    table = realdata.pairs_table(rows)
    write_parquet(folder / "pairs.parquet", table)
    write_parquet(folder / "tokens.parquet", tokenize_pairs(table, load_tokenizer(base), "auto")[0])
    return folder / "tokens.parquet"


def cut_shards(base: Path, tokens: Path, truncation: str, out: Path) -> Path:
    """The folder of shards of one truncation."""
    tokenizer = load_tokenizer(base)

    def ids(texts: list[str]) -> list[list[int]]:
        return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    shards.write_shards(tokens, tokens.with_name("pairs.parquet"), parse(truncation), out, ids)
    return out


def other_model(base: Path, seed: int = 7, spread: float = 0.02) -> PreTrainedModel:
    """The model at `base` with noise on its weights."""
    model = load_causal_lm(base)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += spread * torch.randn(parameter.shape, generator=generator)
    return model


def plain_logps(model: nn.Module, pairs: Sequence[PairIds]) -> Tensor:
    """log p of both responses [pairs, 2], each text by itself in one ordinary padded batch."""
    texts = [text for pair in pairs for text in setup.both_texts(pair)]
    sizes = [len(ids) for pair in pairs for ids in (pair.chosen, pair.rejected)]
    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts])
    lengths = torch.tensor([len(text) for text in texts])
    mask = (torch.arange(width) < lengths[:, None]).long()
    logps = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    read = logps.gather(2, ids[:, 1:, None])[..., 0]
    place = torch.arange(1, width)
    inside = (place < lengths[:, None]) & (place >= (lengths - torch.tensor(sizes))[:, None])
    sums: Tensor = (read * inside).sum(1)
    return sums.view(-1, 2)


def plain_gradients(base: Path, pairs: Sequence[PairIds], references: Tensor, beta: float) -> setup.Gradients:
    """The gradient of the mean loss over one padded batch of all pairs."""
    model = load_causal_lm(base).train()
    chosen, rejected = (plain_logps(model, pairs) - references).unbind(1)
    (-nn.functional.logsigmoid(beta * (chosen - rejected))).mean().backward()
    return setup.gradients_of(model)


def trainer_on(
    base: Path, pairs: Sequence[PairIds], references: Tensor, settings: DPORecipe, folder: Path, **changes: Any
) -> FastDPOTrainer:
    """The fast trainer with the model at `base`; its first loss is not looked at."""
    data = with_references(setup.as_dataset(pairs), references.double().numpy())
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
    return FastDPOTrainer(
        model=load_causal_lm(base, attention=settings.attention),
        args=DPOConfig(**arguments, beta=settings.beta, precompute_ref_log_probs=True),
        train_dataset=data,
        processing_class=load_tokenizer(base),
        sampler=sampler,
        share_prompt=settings.share_prompt,
        **{"source": "a test", "tolerance": float("inf"), **changes},
    )


def fast_gradients(
    base: Path, pairs: Sequence[PairIds], references: Tensor, settings: DPORecipe, folder: Path
) -> setup.Gradients:
    """The gradients of the first optimiser step of a training run."""
    trainer = trainer_on(base, pairs, references, settings, folder)
    trainer.add_callback(catch := setup.CatchGradients())
    trainer.train()
    return catch.steps[0]


class TokenisedDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """Stock TRL but that it takes token ids."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


def stock_references(base: Path, pairs: Sequence[PairIds], folder: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What TRL's own `compute_ref_log_probs` says of one padded batch of pairs, [pairs, 2]."""
    columns = {
        "prompt_ids": [list(pair.prompt) for pair in pairs],
        "chosen_ids": [list(pair.chosen) for pair in pairs],
        "rejected_ids": [list(pair.rejected) for pair in pairs],
    }
    data = datasets.Dataset.from_dict(columns)
    arguments = {"output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none", "max_length": None}
    model = load_causal_lm(base)
    stock = TokenisedDPOTrainer(
        model=model,
        ref_model=load_causal_lm(base),
        args=DPOConfig(**arguments),
        train_dataset=data,
        processing_class=load_tokenizer(base),
    )
    found = stock.compute_ref_log_probs(stock.ref_model, stock.data_collator(list(data)))
    return torch.stack(found, dim=1).numpy()
