"""Bad input: every kind ends in the quarantine with its reason or in one clear line, and nothing is lost in between."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shallow_signals.config.sources import Columns, Dataset, FileSource, HubSource
from shallow_signals.data.convert import columns_converter, convert, hub_converter
from shallow_signals.data.feed import Item
from shallow_signals.data.ingest import collect, ingest
from shallow_signals.data.quarantine import RAW_CHARACTERS, REASONS, Filtered, Rejected
from shallow_signals.files import InputError

GOOD = {"prompt": "why?", "chosen": "because", "rejected": "no idea"}


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def line(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


KINDS: dict[str, tuple[bytes, str]] = {
    "empty response": (line(chosen=""), "empty_chosen"),
    "white space only": (line(rejected=" \n\t "), "empty_rejected"),
    "missing field": (b'{"prompt": "why?", "chosen": "because"}', "missing_field"),
    "null": (line(chosen=None), "missing_field"),
    "number for text": (line(chosen=3), "wrong_type"),
    "object for text": (line(rejected={"text": "no"}), "wrong_type"),
    "row that is a list": (b'["why?", "because", "no idea"]', "wrong_type"),
    "row that is a string": (b'"why?"', "wrong_type"),
    "empty prompt": (line(prompt=""), "empty_prompt"),
    "prompt without turns": (line(prompt=[]), "empty_prompt"),
    "only a system turn": (line(prompt=[turn("system", "be brief")]), "empty_prompt"),
    "no assistant turn": (line(chosen=[turn("user", "why?")]), "no_assistant_turn"),
    "unknown role": (line(prompt=[turn("human", "why?")]), "unknown_role"),
    "turn without content": (line(prompt=[{"role": "user"}]), "missing_field"),
    "turn that is a string": (line(prompt=["why?"]), "wrong_type"),
    "two users in a row": (line(prompt=[turn("user", "why?"), turn("user", "how?")]), "roles_do_not_alternate"),
    "prompt ends with the assistant": (
        line(prompt=[turn("user", "why?"), turn("assistant", "well")]),
        "roles_do_not_alternate",
    ),
    "late system turn": (line(prompt=[turn("user", "why?"), turn("system", "brief")]), "roles_do_not_alternate"),
    "other prompt in the response": (line(chosen=[turn("user", "how?"), turn("assistant", "so")]), "prompts_differ"),
    "equal pair": (line(rejected="because"), "equal_responses"),
    "equal but for white space": (line(rejected="because\n"), "equal_responses"),
    "lone surrogate": (rb'{"prompt": "why?", "chosen": "be\ud83dcause", "rejected": "no idea"}', "lone_surrogate"),
    "lone surrogate in a label": (line(topic="\udc00"), "lone_surrogate"),
    "NUL": (line(chosen="be\0cause"), "nul_character"),
    "NUL in the prompt": (line(prompt=[turn("user", "wh\0y?")]), "nul_character"),
    "1 MB response": (line(chosen="x" * 1_000_000), "too_long"),
    "1 MB prompt": (line(prompt="x" * 1_000_000), "too_long"),
    "duplicate": (line(), "duplicate"),
    "cut JSON": (line()[:-9], "malformed_json"),
    "no UTF-8": (b'{"prompt": "why?\xff", "chosen": "a", "rejected": "b"}', "malformed_json"),
    "binary": (b"\x00\x01\x02PAR1", "malformed_json"),
    "nested without end": (b"[" * 100_000, "malformed_json"),
    "number of 10,000 digits": (b'{"prompt": ' + b"9" * 10_000 + b"}", "malformed_json"),
    "label of another type": (line(topic=["a"]), "wrong_type"),
    "margin that is text": (line(gap="large"), "wrong_type"),
    "unknown split": (line(part="dev"), "wrong_type"),
}
ALL_COLUMNS = Columns(cluster="topic", margin="gap", split="part")


def run(tmp_path: Path, source: FileSource) -> dict[str, Any]:
    return ingest(Dataset(label="set", source=source), "set", tmp_path / "out", None, {})


def quarantine(tmp_path: Path) -> list[dict[str, Any]]:
    return pq.read_table(tmp_path / "out" / "quarantine.parquet").to_pylist()


def good_line() -> bytes:
    """A sound row that has every mapped column."""
    return line(topic="t", gap=1.0, part="train")


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_its_reason(kind: str, tmp_path: Path) -> None:
    bad, reason = KINDS[kind]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(good_line() + b"\n" + bad + b"\n")
    manifest = run(tmp_path, FileSource(path=str(path), columns=ALL_COLUMNS))
    assert manifest["quarantined"] == {reason: 1} and manifest["pairs"]["train"] == 1
    row = quarantine(tmp_path)[0]
    assert (row["row_number"], row["reason"]) == (2, reason)
    assert row["raw"].isascii() and row["detail"].isascii() and 0 < len(row["raw"]) <= RAW_CHARACTERS


def test_all_kinds_in_one_file_and_nothing_lost(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    bad = [text for text, _ in KINDS.values()]
    with gzip.open(path, "wb") as file:
        file.write(b"\n".join([good_line(), b"", *bad, line(prompt="another", chosen="a", rejected="b")]))
    manifest = run(tmp_path, FileSource(path=str(path), columns=ALL_COLUMNS))
    assert manifest["candidates"] == manifest["rows"]["read"] == len(KINDS) + 2
    assert manifest["pairs"]["train"] == 2
    assert sum(manifest["quarantined"].values()) == len(KINDS) == len(quarantine(tmp_path))
    found = {row["reason"] for row in quarantine(tmp_path)}
    assert found == {reason for _, reason in KINDS.values()} and len(found) >= 15
    assert found <= set(REASONS)


def test_sound_rows_are_not_quarantined(tmp_path: Path) -> None:
    """The negative control of the checks: unusual but whole."""
    rows = [
        line(chosen="\U0001f600 a pair of surrogates makes a character", rejected="ä"),
        line(prompt=[turn("system", ""), turn("user", "q"), turn("assistant", ""), turn("user", "and?")]),
        line(chosen="x" * 200_000),
        line(chosen=" because ", rejected="because!"),
        line(chosen="no idea", rejected="because"),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(rows) + b"\n\n")
    manifest = run(tmp_path, FileSource(path=str(path)))
    assert manifest["pairs"]["train"] == 5 and not manifest["quarantined"]


def refused(tmp_path: Path, path: Path, *words: str, columns: Columns | None = None) -> None:
    with pytest.raises(InputError) as caught:
        run(tmp_path, FileSource(path=str(path), columns=columns or Columns()))
    message = str(caught.value)
    assert "\n" not in message and path.name in message
    for word in words:
        assert word in message, message


def test_files_that_are_refused(tmp_path: Path) -> None:
    empty, blank, odd = tmp_path / "empty.jsonl", tmp_path / "blank.jsonl", tmp_path / "rows.csv"
    empty.touch()
    blank.write_text("\n\n")
    odd.write_text("a,b\n")
    refused(tmp_path, empty, "is empty")
    refused(tmp_path, blank, "no rows")
    refused(tmp_path, odd, ".jsonl.gz", ".parquet")
    refused(tmp_path, tmp_path / "nothing.jsonl", "no such file", "data_root")
    folder = tmp_path / "folder.parquet"
    folder.mkdir()
    refused(tmp_path, folder, "a folder, not a file")


@pytest.mark.parametrize("keep", [4, 40, 100, -50, -4])
def test_truncated_parquet(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([GOOD | {"prompt": f"why {n}?"} for n in range(100)]), path)
    path.write_bytes(path.read_bytes()[:keep])
    refused(tmp_path, path, "damaged or cut off")


def test_parquet_damaged_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    rows = [GOOD | {"prompt": f"why {n * n}?"} for n in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[4:104] = b"\xaa" * 100
    path.write_bytes(data)
    refused(tmp_path, path, "damaged or cut off")


@pytest.mark.parametrize("keep", [5, -20, -4])
def test_truncated_gzip(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    rows = b"\n".join(line(prompt=f"why {n * n}?") for n in range(100))
    path.write_bytes(gzip.compress(rows)[:keep])
    refused(tmp_path, path, "damaged or cut off")


def test_a_file_that_is_not_what_its_name_says(tmp_path: Path) -> None:
    plain, table = tmp_path / "plain.jsonl.gz", tmp_path / "table.parquet"
    plain.write_bytes(line())
    table.write_bytes(line())
    refused(tmp_path, plain, "damaged or cut off")
    refused(tmp_path, table, "damaged or cut off")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_wrong_column_map_names_the_column_and_those_there_are(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{suffix}"
    if suffix == "jsonl":
        path.write_bytes(line())
    else:
        pq.write_table(pa.Table.from_pylist([GOOD]), path)
    there = "'chosen', 'prompt', 'rejected'"
    refused(tmp_path, path, "'answer'", there, columns=Columns(chosen="answer"))
    refused(tmp_path, path, "'topic'", there, columns=Columns(cluster="topic"))
    with pytest.raises(InputError, match="'sample'"):
        run(tmp_path, FileSource(path=str(path), keep_where="sample"))


def test_a_parquet_file_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([GOOD]).slice(0, 0), path)
    refused(tmp_path, path, "no rows")


def test_parquet_text_that_is_no_utf8(tmp_path: Path) -> None:
    """Parquet's writers don't check; the row is found and the others are kept."""
    path = tmp_path / "rows.parquet"
    texts = pa.array([b"good", b"b\xff\xfed", b"fine"]).view(pa.string())
    columns = {"prompt": pa.array(["q"] * 3), "chosen": texts, "rejected": pa.array(["no"] * 3)}
    pq.write_table(pa.table(columns), path)
    manifest = run(tmp_path, FileSource(path=str(path)))
    assert manifest["quarantined"] == {"not_utf8": 1} and manifest["pairs"]["train"] == 2
    assert quarantine(tmp_path)[0]["row_number"] == 2


def test_parquet_of_other_types(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    rows = {"prompt": ["q", "q"], "chosen": [b"bytes", b"more"], "rejected": ["a", "b"]}
    pq.write_table(pa.table(rows), path)
    with pytest.raises(InputError, match=r"none of 2 rows became a pair \(wrong_type 2\)"):
        run(tmp_path, FileSource(path=str(path)))


def test_keep_where_wants_a_boolean(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    values = [True, False, None, "yes", 1]
    path.write_bytes(b"\n".join(line(prompt=f"q{n}", sample=value) for n, value in enumerate(values)))
    manifest = run(tmp_path, FileSource(path=str(path), keep_where="sample"))
    assert manifest["filtered"] == {"keep_where": 2} and manifest["quarantined"] == {"wrong_type": 2}


# Rows of any shape: never an exception, and every one accounted for.

CHARACTERS = st.characters(exclude_categories=[])  # lone surrogates and NUL included
TEXTS = st.one_of(st.sampled_from(["q", "a", "b", "", " ", "4", "N/A", "train"]), st.text(CHARACTERS, max_size=8))
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS)
TURNS = st.fixed_dictionaries(
    {"role": st.one_of(st.sampled_from(["user", "assistant", "system"]), SCALARS), "content": st.one_of(TEXTS, SCALARS)}
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4), st.lists(TURNS, max_size=4)
    ),
    max_leaves=12,
)
RATED = st.fixed_dictionaries(
    {"response": st.one_of(TEXTS, JSON), "annotations": st.fixed_dictionaries({"honesty": st.one_of(
        st.fixed_dictionaries({"Rating": st.one_of(st.sampled_from(["1", "5", "N/A"]), JSON)}), JSON)})}
)  # fmt: skip
FIELDS = [
    "prompt", "chosen", "rejected", "score_chosen", "score_rejected", "subset", "topic", "gap", "part", "history",
    "human_ref_A", "human_ref_B", "labels", "post_id", "score_ratio", "instruction", "completions",
]  # fmt: skip
ROWS = st.one_of(
    JSON,
    st.fixed_dictionaries(
        {},
        optional={name: st.one_of(TEXTS, st.lists(TURNS, max_size=4), st.sampled_from([0, 1]), JSON) for name in FIELDS}
        | {"completions": st.one_of(st.lists(RATED, max_size=4), JSON)},
    ),
    st.builds(lambda row, changes: row | changes, st.just(GOOD), st.dictionaries(st.sampled_from(FIELDS), JSON)),
)
CONVERTERS = {
    name: hub_converter(HubSource(repo="r", converter=name, aspect="honesty"), FIELDS)
    for name in ("message_lists", "ultrafeedback_aspects", "shp", "rewardbench", "hh_rlhf", "columns")
} | {"mapped": columns_converter(ALL_COLUMNS)}
SETTINGS = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.mark.parametrize("name", CONVERTERS)
@SETTINGS
@given(rows=st.lists(ROWS, max_size=6))
def test_any_row_is_accounted_for(name: str, rows: list[Any]) -> None:
    dataset = Dataset(label="set", source=FileSource(path="rows.jsonl"), holdout=0.5)
    items = [Item(n, row, convert(CONVERTERS[name], row), None) for n, row in enumerate(rows, 1)]
    assert all(item.outcomes for item in items)
    outcomes = [outcome for item in items for outcome in item.outcomes]
    assert all(isinstance(outcome, Rejected | Filtered | dict) for outcome in outcomes)
    found = collect(items, dataset, "rows.jsonl")
    table = found.table()
    assert found.candidates == len(outcomes) and found.rows == len(rows)
    assert found.candidates == len(table) + found.quarantined.total() + found.filtered.total()
    assert found.quarantined.keys() <= REASONS.keys()


@SETTINGS
@given(rows=st.lists(ROWS, min_size=1, max_size=6), damage=st.sampled_from([b"", b"{", b"\xff", b"null"]))
def test_any_file_gives_pairs_or_one_line(
    rows: list[Any], damage: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / "rows.jsonl"
    lines = [json.dumps(row).encode() for row in rows] + [damage]
    path.write_bytes(b"\n".join(lines))
    try:
        manifest = run(folder, FileSource(path=str(path)))
    except InputError as error:
        assert "\n" not in str(error) and str(error).isascii()
        return
    assert manifest["rows"]["read"] == len(rows) + bool(damage)
    total = sum(manifest["pairs"].values()) + sum(manifest["quarantined"].values())
    assert total == manifest["candidates"] == manifest["rows"]["read"]
