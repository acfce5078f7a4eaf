"""The first step of a study: a source becomes pairs, a quarantine and a manifest whose counts add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shallow_signals.config.sources import Dataset, HubSource
from shallow_signals.data.feed import Item, Split, open_feed
from shallow_signals.data.pairs import PAIRS, Pair, content_id, prompt_id, uniform_hash
from shallow_signals.data.quarantine import QUARANTINE, Filtered, Rejected, check, raw_json
from shallow_signals.files import InputError, write_json, write_parquet

_BATCH = 2_000  # pairs held as Python objects


def ingest(dataset: Dataset, name: str, out: Path, data_root: Path | None, pins: Mapping[str, str]) -> dict[str, Any]:
    """Read a data set's source and write `pairs.parquet`, `quarantine.parquet` and `manifest.json` into `out`.

    Returns the manifest. Each row gives one candidate pair, or several (UltraFeedback's completions); the counts fulfil

        candidates = pairs + quarantined + filtered + left_out_by_subset
        rows.read = rows.with_pairs + rows.without_pairs

    where the pairs of a row stand before the cap per post and the subset are drawn. `contradictory` counts pairs whose
    responses stand the other way round in an earlier pair of the same prompt: people disagree, so both are kept.
    Splits, caps and subsets are drawn by hash of content and don't depend on the order of rows.

    Raises `InputError` where the source can't be read, no pair is left, or a held-out share leaves a part empty.
    """
    feed = open_feed(dataset.source, data_root, pins)
    found = collect(feed.items, dataset, feed.name)
    table = found.table()
    keep, capped = _below_cap(table, feed.pairs_per_cluster)
    found.filtered.update({"pairs_per_post": capped} if capped else {})
    table = table.filter(keep)
    _refuse_empty(name, dataset, table, found)
    wanted = {"train": dataset.train_pairs, "test": dataset.test_pairs}
    keep, left_out = _subset(table, wanted)
    table = table.filter(keep)

    manifest = {
        "dataset": name,
        "label": dataset.label,
        "source": feed.identity,
        "rows": {"read": found.rows, "with_pairs": found.rows_with_pairs, "without_pairs": found.rows_without_pairs},
        "candidates": found.candidates,
        "pairs": {split: _count(table, split) for split in wanted},
        "quarantined": dict(sorted(found.quarantined.items())),
        "filtered": dict(sorted(found.filtered.items())),
        "left_out_by_subset": left_out,
        "contradictory": found.contradictory,
        "prompts": {split: len(_prompts(table, split)) for split in wanted},
        "prompts_in_both_parts": len(_prompts(table, "train") & _prompts(table, "test")),
    }
    write_parquet(out / "pairs.parquet", table)
    write_parquet(out / "quarantine.parquet", pa.Table.from_pylist(found.quarantine, schema=QUARANTINE))
    write_json(out / "manifest.json", manifest)
    return manifest


@dataclass
class Collected:
    """What came of the rows read so far."""

    rows: int = 0
    rows_with_pairs: int = 0
    candidates: int = 0
    contradictory: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    filtered: Counter[str] = field(default_factory=Counter)
    quarantine: list[dict[str, Any]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    batches: list[pa.Table] = field(default_factory=list)
    pending: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rows_without_pairs(self) -> int:
        """Rows of which nothing was kept."""
        return self.rows - self.rows_with_pairs

    def pack(self) -> None:
        """Move the pending pairs into Arrow, which holds them in a fraction of the space."""
        self.batches.append(pa.Table.from_pylist(self.pending, schema=PAIRS))
        self.pending = []

    def table(self) -> pa.Table:
        """All pairs, in the order of the rows."""
        self.pack()
        return pa.concat_tables(self.batches)


def collect(items: Iterable[Item], dataset: Dataset, source: str) -> Collected:
    """Check the pairs of all rows, leave repeated ones out, and give each its hashes and its split."""
    found = Collected()
    for item in items:
        found.rows += 1
        kept = 0
        for outcome in item.outcomes:
            found.candidates += 1
            if isinstance(outcome, Filtered):
                found.filtered[outcome.reason] += 1
                continue
            result = outcome if isinstance(outcome, Rejected) else _stored(outcome, item.split, dataset, source, found)
            if isinstance(result, Rejected):
                found.quarantined[result.reason] += 1
                row = {"row_number": item.number, "reason": result.reason, "detail": result.detail}
                found.quarantine.append(row | {"raw": raw_json(item.row)})
                continue
            kept += 1
            found.pending.append(result)
            if len(found.pending) == _BATCH:
                found.pack()
        found.rows_with_pairs += kept > 0
    return found


def _stored(
    pair: Pair, split: Split | None, dataset: Dataset, source: str, found: Collected
) -> dict[str, Any] | Rejected:
    """The row of `PAIRS` that a pair becomes, unless it is unsound or was seen before."""
    if rejected := check(pair):
        return rejected
    prompt, chosen, rejected_text = prompt_id(pair["prompt"]), pair["chosen"], pair["rejected"]
    identity = content_id(prompt, chosen, rejected_text)  # `pairs.pair_id`, without hashing the prompt again
    if identity in found.seen:
        return Rejected("duplicate", identity)
    found.seen.add(identity)
    found.contradictory += content_id(prompt, rejected_text, chosen) in found.seen
    cluster = pair.get("cluster") or prompt
    key = cluster if dataset.split_by == "cluster" else prompt
    drawn = "test" if uniform_hash("split", key) < dataset.holdout else "train"
    return {
        "pair_id": identity,
        "prompt_id": prompt,
        "prompt": pair["prompt"],
        "chosen": chosen,
        "rejected": rejected_text,
        "source": source,
        "split": pair.get("split") or split or drawn,
        "cluster": cluster,
        "subset": pair.get("subset"),
        "margin": pair.get("margin"),
        "aspect": pair.get("aspect"),
        "generator": pair.get("generator"),
    }


def _below_cap(table: pa.Table, cap: int | None) -> tuple[pa.Array, int]:
    """A mask of at most `cap` pairs of each cluster, those of the smallest hashes, and how many it leaves out."""
    keep = [True] * len(table)
    if cap is not None:
        ids = table["pair_id"].to_pylist()
        taken: Counter[str] = Counter()
        clusters = table["cluster"].to_pylist()
        for row in sorted(range(len(ids)), key=lambda row: uniform_hash("post", ids[row])):
            taken[clusters[row]] += 1
            keep[row] = taken[clusters[row]] <= cap
    return pa.array(keep, pa.bool_()), keep.count(False)


def _subset(table: pa.Table, wanted: Mapping[str, int | None]) -> tuple[pa.Array, dict[str, int]]:
    """A mask of the wanted number of pairs of each split, those of the smallest hashes, and how many it leaves out."""
    keep = [True] * len(table)
    left_out = dict.fromkeys(wanted, 0)
    ids, splits = table["pair_id"].to_pylist(), table["split"].to_pylist()
    for split, number in wanted.items():
        rows = [row for row, of in enumerate(splits) if of == split]
        if number is None or len(rows) <= number:
            continue
        rows.sort(key=lambda row: uniform_hash("subset", ids[row]))
        left_out[split] = len(rows) - number
        for row in rows[number:]:
            keep[row] = False
    return pa.array(keep, pa.bool_()), left_out


def _refuse_empty(name: str, dataset: Dataset, table: pa.Table, found: Collected) -> None:
    """Raise `InputError` where no pair is left, or a part that the configuration asks for is empty."""
    if not len(table):
        reasons = ", ".join(f"{reason} {n}" for reason, n in (found.quarantined + found.filtered).most_common(5))
        raise InputError(
            f"datasets.{name}: none of {found.rows} rows became a pair ({reasons}); check the source's keys"
        )
    source = dataset.source
    given = isinstance(source, HubSource) and source.test_split is not None
    for split in ("train", "test"):
        if (given or dataset.holdout > 0) and not _count(table, split):
            key = "source.test_split" if given else "holdout"
            units = len(set(table["cluster" if dataset.split_by == "cluster" else "prompt_id"].to_pylist()))
            raise InputError(
                f"datasets.{name}.{key}: the {split} part is empty ({len(table)} pairs of {units} {dataset.split_by}s, "
                f"holdout {dataset.holdout:g}); change it, or 'split_by'"
            )


def _count(table: pa.Table, split: str) -> int:
    return int(pc.sum(pc.equal(table["split"], split)).as_py() or 0)


def _prompts(table: pa.Table, split: str) -> set[str]:
    return set(table.filter(pc.equal(table["split"], split))["prompt_id"].to_pylist())
