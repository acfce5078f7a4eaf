"""Pairs of texts for a tiny reward model to score, and what each text scores by itself."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

import checkpoints
from shallow_signals.config.study import Study
from shallow_signals.data.shards import SHARDS
from shallow_signals.evaluation.scores import score_pairs
from shallow_signals.files import write_parquet
from shallow_signals.models.load import load_reward_model, load_tokenizer
from shallow_signals.models.templates import read_template

CUTS: list[int] = Study.model_fields["cuts"].default


class Family:
    """A tiny reward model with its tokenizer and pairs of texts."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = checkpoints.reward(folder / "reward", getattr(checkpoints, name)(folder / "base"))
        self.tokenizer = load_tokenizer(self.folder)
        self.model = load_reward_model(self.folder)
        self.closing = list(read_template(self.tokenizer, "auto").closing_ids)
        self.pad_id = self.tokenizer.pad_token_id or 0
        self.rows = [self.row(i, *texts) for i, texts in enumerate(TEXTS)]

    def row(self, index: int, prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
        chat = [{"role": "user", "content": prompt}]
        ids = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        sides = {"chosen_ids": chosen, "rejected_ids": rejected}
        tokens = {key: self.tokenizer(text, add_special_tokens=False).input_ids for key, text in sides.items()}
        return {"pair_id": f"p{index}", "cluster": f"c{index % 3}", "subset": None, "prompt_ids": ids, **tokens}

    def score(self, rows: list[dict[str, Any]], **settings: Any) -> pa.Table:
        given = {"closing": self.closing, "cuts": CUTS, "max_length": 2048, "token_budget": 600, "pad_id": self.pad_id}
        return score_pairs(self.model, rows, **{**given, **settings})

    def alone(self, texts: list[list[int]]) -> list[float]:
        """Each text's score from one ordinary forward, padded on the right, read at its last token by its length."""
        width = max(map(len, texts))
        ids = torch.tensor([text + [self.pad_id] * (width - len(text)) for text in texts])
        mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
        with torch.no_grad():
            hidden = self.model.model(input_ids=ids, attention_mask=mask).last_hidden_state
            found = hidden @ self.model.score.weight.T
        return [float(found[i, len(text) - 1, 0]) for i, text in enumerate(texts)]

    def expected(self, row: dict[str, Any], cuts: list[int], closing: list[int]) -> dict[str, list[float]]:
        """Test name to the scores of chosen and rejected, each cut response scored by itself."""
        texts, names = [], []
        for cut in [100, *(cut for cut in cuts if cut < 100)]:
            names.append("full" if cut == 100 else f"cut{cut:02d}")
            for side in ("chosen_ids", "rejected_ids"):
                kept = max(1, int(Fraction(cut, 100) * len(row[side])))
                texts.append(row["prompt_ids"] + row[side][:kept] + closing)
        flat = self.alone(texts)
        return {name: flat[2 * i : 2 * i + 2] for i, name in enumerate(names)}


TEXTS = [
    (
        "How do I bake bread?",
        "First mix the flour, the water and the salt. Then let it rest.",
        "I can't help with that.",
    ),
    (
        "What is the capital of France?",
        "Paris is the capital of France; Berlin is another one.",
        "Rome, said the fox 🙂.",
    ),
    ("Add two numbers.", "def add(a, b):\n    return a + b\n\nprint(add(2, 3))\n", "a"),
    ("Hello", "The lazy dog sleeps for the rest of the day, and then it jumps over the quick brown fox.", "No"),
]


def by_test(table: pa.Table, pair_id: str) -> dict[str, list[float]]:
    return {row["test"]: [row["chosen"], row["rejected"]] for row in table.to_pylist() if row["pair_id"] == pair_id}


def columns(table: pa.Table) -> np.ndarray:
    return np.array([table["chosen"], table["rejected"]])


def shards(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Test shards of rows, by the schema that the shards are written in."""
    full = [
        {**dict.fromkeys(SHARDS.names), **{key: row[key] for key in ("pair_id", "cluster", "subset")}}
        | {f"{part}_tokens": row[f"{part}_ids"] for part in ("prompt", "chosen", "rejected")}
        for row in rows
    ]
    write_parquet(folder / "test-00000.parquet", pa.Table.from_pylist(full, schema=SHARDS))
    return folder


def tokens_file(path: Path, rows: list[dict[str, Any]], closing: list[int]) -> Path:
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"closing_ids": json.dumps(closing)})
    write_parquet(path, table)
    return path
