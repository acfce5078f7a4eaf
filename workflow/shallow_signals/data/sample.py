"""Which rows of a benchmark are read where not all of them are."""

from __future__ import annotations

import pyarrow as pa

from shallow_signals.data.pairs import uniform_hash
from shallow_signals.files import InputError


def stratified_sample(pairs: pa.Table, rows: int) -> pa.Table:
    """A fixed sample of `rows` pairs, stratified by subset, in the table's order.

    Every subset keeps one row; the others go to the subsets in proportion to their rows, by largest remainder. Within
    a subset those with the smallest hash of their `pair_id` are kept. Asking for as many rows as there are, or more,
    returns them all; for fewer than there are subsets, raises `InputError`.
    """
    if rows >= pairs.num_rows:
        return pairs
    members: dict[str, list[int]] = {}
    for index, subset in enumerate(pairs["subset"].to_pylist()):
        members.setdefault(subset or "", []).append(index)
    if rows < len(members):
        raise InputError(f"benchmark: rows: {rows} can't cover {len(members)} subsets; ask for at least {len(members)}")
    ids = pairs["pair_id"].to_pylist()
    names = sorted(members)
    spare, room = rows - len(names), pairs.num_rows - len(names)
    shares = {name: spare * (len(members[name]) - 1) / room for name in names}
    quota = {name: 1 + int(shares[name]) for name in names}
    largest = sorted(names, key=lambda name: (int(shares[name]) - shares[name], name))
    for name in largest[: rows - sum(quota.values())]:
        quota[name] += 1
    kept = [
        index
        for name in names
        for index in sorted(members[name], key=lambda row: (uniform_hash(ids[row]), ids[row]))[: quota[name]]
    ]
    return pairs.take(pa.array(sorted(kept)))
