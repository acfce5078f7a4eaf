"""Figure 4 is drawn from its table alone."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from shallow_signals.decoding import Strategy, kl_threshold, length_control, mixing, policy, reference
from shallow_signals.evaluation.statistics import Estimate
from shallow_signals.evaluation.tradeoff import COLUMNS, Point, point_row
from shallow_signals.files import InputError
from shallow_signals.paper.tradeoff_figure import draw_tradeoff


def point(strategy: Strategy, kl: float) -> Point:
    estimate = Estimate(kl, kl - 0.1, kl + 0.1, 20, 20, "bootstrap")
    return Point(strategy, estimate, estimate, Estimate(kl**0.5, 0.0, kl + 1, 20, 20, "bootstrap"), 10.0, 0.9)


def rows(label: str) -> list[dict[str, object]]:
    strategies = [reference(), policy(), mixing(0.5), length_control(4), kl_threshold(0.1)]
    made = [point_row(label, s.kind, s.parameter, point(s, 1.0 + i)) for i, s in enumerate(strategies)]
    return [*made, point_row(label, "retrained", 0.5, point(policy(), 3.0))]


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    frame = pd.DataFrame(rows("A") + rows("B"))
    assert frame.columns.tolist() == COLUMNS
    frame.to_csv(tmp_path / "figure4.csv", index=False)
    pictures = [tmp_path / "figure4.png", tmp_path / "figure4.pdf"]
    draw_tradeoff(tmp_path / "figure4.csv", pictures)
    first = [path.read_bytes() for path in pictures]
    assert first[0].startswith(b"\x89PNG") and first[1].startswith(b"%PDF")
    draw_tradeoff(tmp_path / "figure4.csv", pictures)
    assert [path.read_bytes() for path in pictures] == first


def test_a_table_without_a_column_is_named(tmp_path: Path) -> None:
    pd.DataFrame(rows("A")).drop(columns="kl_low").to_csv(tmp_path / "figure4.csv", index=False)
    with pytest.raises(InputError, match=r"figure4\.csv: no column kl_low"):
        draw_tradeoff(tmp_path / "figure4.csv", [tmp_path / "figure4.png"])
