"""The paper's printed numbers: facts of their arithmetic, recomputed, and values that its prose quotes."""

from __future__ import annotations

from decimal import Decimal

from shallow_signals.paper.published_checks import GRIM_ROWS, attainable, load_published, recomputed


def test_published_tables_are_complete() -> None:
    sizes = {name: len(load_published(name)) for name in ("table1", "table2", "table3", "table4")}
    assert sizes == {"table1": 75, "table2": 30, "table3": 12, "table4": 25}
    # Quoted in the paper's abstract and introduction, apart from its tables.
    quoted = {(c.dataset, c.truncation): c.value for c in load_published("table1") if c.dimension == "Total"}
    for key, value in {"full": "0.7585", "head50": "0.7588", "head40": "0.7635", "head25": "0.6992"}.items():
        assert quoted["Skywork-Preference", key] == Decimal(value)
    for key, value in {"full": "0.6596", "head50": "0.7216", "head40": "0.6971", "head33": "0.6244"}.items():
        assert quoted["RLHFlow-Preference", key] == Decimal(value)


def test_printed_averages_of_table_2() -> None:
    cuts = ["full", "head50", "head40", "head30", "head20", "head10"]
    found = [recomputed(load_published("table2"), "UltraFeedback", cut, "Average") for cut in cuts]
    assert [float(printed) for printed, _ in found] == [0.88, 0.8825, 0.87, 0.855, 0.795, 0.705]
    assert [float(true) for _, true in found] == [0.88, 0.8825, 0.8675, 0.8525, 0.79, 0.705]


def test_printed_totals_are_rarely_the_mean_of_the_sections() -> None:
    cells = load_published("table1") + load_published("table4")
    columns = sorted({(cell.dataset, cell.truncation) for cell in cells})
    found = {key: recomputed(cells, *key, "Total") for key in columns}
    assert len(found) == 20
    gaps = {key: abs(printed - mean) for key, (printed, mean) in found.items()}
    assert sum(gap <= Decimal("0.001") for gap in gaps.values()) == 3
    assert sum(gap <= Decimal("0.0001") for gap in gaps.values()) == 0
    assert max(gaps, key=lambda key: gaps[key]) == ("RLHFlow-Preference", "head25")
    means = [round(float(found["Skywork-Preference", cut][1]), 4) for cut in ("full", "head50", "head40")]
    assert means == [0.7593, 0.7565, 0.7515]


def test_grim_counts() -> None:
    def counts(truncated: bool) -> dict[str, int]:
        result: dict[str, int] = {}
        for cell in load_published("table1") + load_published("table4"):
            if n := GRIM_ROWS.get(cell.dimension):
                fits = attainable(cell.value, n) or (truncated and attainable(cell.value, n, truncated=True))
                result[cell.dataset] = result.get(cell.dataset, 0) + fits
        return result

    expected = {"Skywork-Preference": 10, "UltraFeedback": 2, "RLHFlow-Preference": 3, "SHP-Preference": 1}
    assert counts(truncated=False) == expected
    assert counts(truncated=True) == expected | {"RLHFlow-Preference": 4}


def test_grim_against_all_shares() -> None:
    """Brute force over every k of 37 rows: attainable exactly where some share rounds to the value."""
    shares = {f"{k / 37:.3f}" for k in range(38)}
    for thousandth in range(1001):
        value = f"{thousandth / 1000:.3f}"
        assert attainable(Decimal(value), 37) == (value in shares)
