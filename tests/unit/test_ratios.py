"""Files of log-probabilities read together: which pairs, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shallow_signals.files import InputError
from shallow_signals.models.logprob_files import LOGPROBS
from shallow_signals.signal.ratios import read_ratios


def scored(path: Path, ids: list[str], level: float) -> Path:
    """A file in which every token of every response has the log-probability `level` times its position."""
    rows = []
    for number, key in enumerate(ids):
        logps = [level * (t + 1) for t in range(2 + number)]
        row = {"pair_id": key, "cluster": f"c{key}", "subset": None, "prompt_ids": [1]}
        for side in ("chosen", "rejected"):
            row |= {f"{side}_ids": list(range(len(logps))), f"{side}_logps": logps}
            row |= {f"{side}_closing_at": [len(logps)], f"{side}_closing": [level]}
        rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows, LOGPROBS), path)
    return path


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    table = pa.table({"pair_id": ["a", "b", "c"], "split": ["train", "test", "test"]})
    pq.write_table(table, tmp_path / "tokens.parquet")
    return tmp_path / "tokens.parquet"


def test_held_out_pairs_only_or_all(tmp_path: Path, tokens: Path) -> None:
    policies = [scored(tmp_path / f"policy{s}.parquet", ["a", "b", "c"], -s) for s in (1.0, 2.0)]
    reference = scored(tmp_path / "reference.parquet", ["c", "a", "b"], -3.0)
    with pytest.raises(ValueError, match="different tokens"):  # it was read on texts of other lengths
        read_ratios(policies, reference, tokens, "test")
    reference = scored(tmp_path / "reference.parquet", ["a", "b", "c", "d"], -3.0)
    found = read_ratios(policies, reference, tokens, "test")
    assert [pair.pair_id for pair in found.runs[0]] == ["b", "c"]
    assert found.clusters == ["cb", "cc"]
    np.testing.assert_allclose(found.runs[0][0].chosen.tokens, [2, 4, 6])
    np.testing.assert_allclose(found.runs[1][0].chosen.tokens, [1, 2, 3])
    np.testing.assert_allclose(found.policies[1][1][0], [-2, -4, -6, -8])
    assert len(read_ratios(policies, reference, tokens, "all").clusters) == 3
    first, second, none = found.split(1, 1)
    assert (first.runs, second.runs, none.runs) == (found.runs[:1], found.runs[1:], [])


def test_missing_pairs_are_named(tmp_path: Path, tokens: Path) -> None:
    policy = scored(tmp_path / "policy.parquet", ["a", "b", "c"], -1)
    with pytest.raises(InputError, match=r"reference\.parquet: lacks 1 pairs of .*policy\.parquet, c first"):
        read_ratios([policy], scored(tmp_path / "reference.parquet", ["a", "b"], -1), tokens, "test")
    with pytest.raises(InputError, match=r"train\.parquet: holds no test pairs"):
        read_ratios([scored(tmp_path / "train.parquet", ["a"], -1)], policy, tokens, "test")
