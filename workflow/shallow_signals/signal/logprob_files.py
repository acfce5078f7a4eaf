"""The run that scores a data set's pairs under a model: resumable, one forward pass a pair."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from shallow_signals.config.hashing import config_hash
from shallow_signals.files import InputError, read_parquet, write_parquet
from shallow_signals.models.attention import with_grouped_attention
from shallow_signals.models.load import Attention, load_causal_lm, load_tokenizer, pick_compute_dtype, pick_device
from shallow_signals.models.logprob_files import (
    GROUP,
    KEYS,
    LOGPROBS,
    READ,
    logprob_columns,
    make_groups,
    read_groups,
    read_logprobs,
)
from shallow_signals.models.logprobs import PairTokens, pair_row, score_rows
from shallow_signals.models.templates import Bos, read_template
from shallow_signals.models.tree import TOKEN_BUDGET, Row, row_length
from shallow_signals.provenance import content_hash

__all__ = ["read_logprobs", "score_logprobs"]


def score_logprobs(
    model: Path,
    tokens: Path,
    out: Path,
    state: Path,
    *,
    cuts: Sequence[int],
    max_length: int,
    compute: Literal["auto", "float32", "bfloat16"] = "auto",
    attention: Attention = "sdpa",
    bos: Bos = "auto",
    adapter: Path | None = None,
    split: Literal["train", "test"] | None = None,
    pair_ids: Collection[str] | None = None,
) -> dict[str, Any]:
    """Score pairs of a tokens file under the checkpoint `model` (with `adapter` on); write the schema `LOGPROBS`.

    All pairs, or those of `split`, or those named by `pair_ids`, in the file's order. The closing is the tokens file's:
    one token long it is read after every token, else at the percentages `cuts` and at the end. Prompts are cut on the
    left to `max_length`, BOS surviving where `bos` says that there is one. Weights are kept in the compute type, the
    softmax is made in float32. Finished groups stand in `state` until `out` is whole: a run that was killed carries on
    and ends with the same bytes. Returns facts for a sidecar: pairs, tokens, seconds, device, compute type. Raises
    `InputError` where there is nothing to score.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    started = time.monotonic()
    table = _table(tokens, split, pair_ids)
    device = pick_device()
    dtype = pick_compute_dtype(compute, device)
    tokenizer = load_tokenizer(model)
    bos_ids = read_template(tokenizer, bos).bos_ids
    bos_id = bos_ids[0] if bos_ids else None
    settings = {
        "closing_ids": (closing := _closing(tokens, table)),
        "cuts": (grid := sorted(set(cuts))),
        "max_length": max_length,
        "compute": str(dtype).removeprefix("torch."),
        "model": content_hash(model),
        "adapter": content_hash(adapter) if adapter else None,
    }
    rows = table["pair_id"].to_pylist()
    groups = state / config_hash({**settings, "bos": bos_id, "tokens": content_hash(tokens), "rows": rows})

    @cache  # a run with nothing left to score loads none
    def loaded() -> Any:
        # FlashAttention takes no mask in which texts branch; the kernels agree but for rounding.
        plain = with_grouped_attention(
            load_causal_lm(model, dtype, "eager" if attention == "eager" else "sdpa", device)
        )
        if adapter is None:
            return plain
        from peft import PeftModel

        return PeftModel.from_pretrained(plain, str(adapter)).eval()

    def laid_out(start: int, end: int) -> list[Row]:
        return [pair_row(pair, closing, grid, max_length, bos_id) for pair in _pairs(table.slice(start, end - start))]

    lengths = [row_length(row) for start in range(0, len(rows), GROUP) for row in laid_out(start, start + GROUP)]
    with tqdm(total=sum(lengths), desc=f"scoring {len(rows)} pairs", unit="token", unit_scale=True) as bar:

        def make(start: int, end: int) -> pa.Table:
            part = table.slice(start, end - start)
            bar.update(sum(lengths[:start]) - bar.n)  # what an earlier run has done
            scored = score_rows(
                loaded(),
                _pairs(part),
                closing,
                cuts=grid,
                max_length=max_length,
                token_budget=TOKEN_BUDGET[device.type],
                pad_id=tokenizer.pad_token_id or 0,
                bos_id=bos_id,
                progress=bar.update,
            )
            columns = {name: part[name] for name in [*KEYS, *READ]} | logprob_columns(scored)
            prompts = [list(row[0].ids) for row in laid_out(start, end)]  # as they were cut
            columns["prompt_ids"] = pa.array(prompts, LOGPROBS.field("prompt_ids").type)
            return pa.table([columns[name] for name in LOGPROBS.names], schema=LOGPROBS)

        make_groups(groups, len(rows), make)
        bar.update(bar.total - bar.n)
    found = read_groups(groups, len(rows))
    write_parquet(out, found.replace_schema_metadata({"logprobs": json.dumps(settings)}))
    shutil.rmtree(groups)
    with suppress(OSError):  # another run may be under way in it
        state.rmdir()
    return {
        "pairs": len(rows),
        "tokens": bar.total,
        "seconds": round(time.monotonic() - started, 1),
        "device": device.type,
        "compute": settings["compute"],
    }


def _table(tokens: Path, split: str | None, pair_ids: Collection[str] | None) -> pa.Table:
    """The rows to score, with the file's metadata."""
    table = read_parquet(tokens, [*KEYS, "split", *READ])
    if split is not None:
        table = table.filter(pc.equal(table["split"], split))
    if pair_ids is not None:
        if unknown := set(pair_ids).difference(table["pair_id"].to_pylist()):
            raise InputError(f"{tokens}: {len(unknown)} of the pair_ids asked for are not in it ({min(unknown)})")
        table = table.filter(pc.is_in(table["pair_id"], pa.array(sorted(pair_ids), pa.string())))
    if not table.num_rows:
        raise InputError(f"{tokens}: holds no pairs to score" + (f" in its {split} split" if split else ""))
    empty = pc.or_(*(pc.equal(pc.list_value_length(table[name]), 0) for name in READ[1:]))
    if pc.any(empty).as_py():
        raise InputError(f"{tokens}: pair {table.filter(empty)['pair_id'][0]} has an empty response; leave it out")
    return table.combine_chunks()


def _closing(tokens: Path, table: pa.Table) -> list[int]:
    metadata = table.schema.metadata or {}
    if b"closing_ids" not in metadata:
        raise InputError(f"{tokens}: metadata 'closing_ids' is missing; make the tokens again")
    closing: list[int] = json.loads(metadata[b"closing_ids"])
    return closing


def _pairs(table: pa.Table) -> list[PairTokens]:
    return [PairTokens(*ids) for ids in zip(*(table[name].to_pylist() for name in READ), strict=True)]
