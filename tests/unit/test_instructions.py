"""Sets of instructions from files, the hub's layout, a planted world and a data set's prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import TypeAdapter, ValidationError

from shallow_signals.config.generation import Instructions
from shallow_signals.data.instructions import INSTRUCTIONS, prepare_instructions
from shallow_signals.data.pairs import PAIRS
from shallow_signals.files import InputError, read_parquet, write_parquet


def prepared(tmp_path: Path, source: Mapping[str, Any], pairs: Path | None = None, **keys: Any) -> list[dict[str, Any]]:
    spec = TypeAdapter(Instructions).validate_python({"label": "Some", "source": source, **keys})
    prepare_instructions(spec, pairs, tmp_path / "out.parquet", tmp_path, {})
    table = read_parquet(tmp_path / "out.parquet")
    assert table.schema == INSTRUCTIONS
    return table.to_pylist()


def write_lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_inputs_stand_below_their_instruction(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"instruction": "Add.", "input": "1, 2"}, {"instruction": "Sing.", "input": ""}])
    rows = prepared(tmp_path, {"kind": "file", "path": "a.jsonl", "columns": {"input": "input"}})
    assert [row["instruction"] for row in rows] == ["Add.\n\n1, 2", "Sing."]
    assert rows[0]["prompt"] == [{"role": "user", "content": "Add.\n\n1, 2"}]


def test_the_alpaca_instructions(shared_data: Path, tmp_path: Path) -> None:
    source = {
        "kind": "file",
        "path": str(shared_data / "instructions_alpaca_1000.jsonl.gz"),
        "columns": {"instruction": "prompt", "output": "reference_output"},
    }
    everything = prepared(tmp_path, source)
    assert len(everything) == 1000 and len({row["instruction_id"] for row in everything}) == 1000
    some = prepared(tmp_path, source, rows=100, seed=1)
    others = prepared(tmp_path, source, rows=100, seed=2)
    order = [row["instruction_id"] for row in everything]
    places = [order.index(row["instruction_id"]) for row in some]
    assert places == sorted(places) and len(set(places)) == 100
    # Independent draws share 10 of 100 on average; all 100, or none, would be no draw.
    assert 0 < len({r["instruction_id"] for r in some} & {r["instruction_id"] for r in others}) < 40


def test_a_sample_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = [{"instruction": f"Question {i}?"} for i in range(50)]
    write_lines(tmp_path / "a.jsonl", rows)
    write_lines(tmp_path / "b.jsonl", rows[::-1])
    a, b = (prepared(tmp_path, {"kind": "file", "path": f"{name}.jsonl"}, rows=10) for name in "ab")
    assert {row["instruction_id"] for row in a} == {row["instruction_id"] for row in b}


def test_one_file_of_a_repository(tmp_path: Path) -> None:
    """AlpacaEval's outputs: a JSON list in a repository whose data set is a script."""
    (tmp_path / "repo").mkdir()
    rows = [{"instruction": "Sing.", "output": "La.", "generator": "gpt4"}] * 2
    (tmp_path / "repo" / "outputs.json").write_text(json.dumps(rows))
    source = {
        "kind": "hub",
        "repo": str(tmp_path / "repo"),
        "file": "outputs.json",
        "columns": {"output": "output", "generator": "generator"},
    }
    found = prepared(tmp_path, source)
    assert [(row["output"], row["generator"]) for row in found] == [("La.", "gpt4")] * 2
    assert found[0]["instruction_id"] != found[1]["instruction_id"]  # a repeated instruction is two


def test_a_data_set_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    write_lines(tmp_path / "repo" / "train.jsonl", [{"prompt": "One?"}, {"prompt": "Two?"}])
    source = {"kind": "hub", "repo": str(tmp_path / "repo"), "columns": {"instruction": "prompt"}}
    assert [row["instruction"] for row in prepared(tmp_path, source)] == ["One?", "Two?"]


def test_the_prompts_of_held_out_pairs(tmp_path: Path) -> None:
    turns = [[{"role": "user", "content": text}] for text in ("A?", "B?", "B?")]
    chat = [*turns[0], {"role": "assistant", "content": "a"}, {"role": "user", "content": "And?"}]
    rows = [
        {"prompt_id": text, "prompt": prompt, "split": split}
        for text, prompt, split in zip("abbc", [*turns, chat], ["train", "test", "test", "test"], strict=True)
    ]
    columns = {field.name: [row.get(field.name) for row in rows] for field in PAIRS}
    write_parquet(tmp_path / "pairs.parquet", pa.table(columns, schema=PAIRS))
    found = prepared(tmp_path, {"kind": "pairs", "dataset": "any"}, tmp_path / "pairs.parquet")
    assert [row["prompt"] for row in found] == [turns[1], chat]
    assert found[1]["instruction"] == "User: A?\n\nAssistant: a\n\nUser: And?"


def test_planted_prompts_are_drawn_by_seed(tmp_path: Path) -> None:
    one, again, other = (prepared(tmp_path, {"kind": "planted", "seed": seed}, rows=20) for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([{"other": "x"}], {}, "instruction"),
        ([{"instruction": " "}], {}, "row 1.*'instruction' holds no instruction"),
        ([{"instruction": [{"role": "user"}]}], {}, "row 1.*no list of messages"),
        (["text"], {}, "row 1.*not an object"),
        ([{"instruction": "x"}], {"input": "inptu"}, "inptu"),
        ([{"instruction": "x", "output": None}], {"output": "output"}, "row 1.*'output' holds no text"),
    ],
)
def test_what_is_no_instruction_is_named(tmp_path: Path, rows: list[Any], columns: Any, message: str) -> None:
    write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(InputError, match=message):
        prepared(tmp_path, {"kind": "file", "path": "a.jsonl", "columns": columns})


def test_more_rows_than_there_are(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"instruction": "x"}])
    with pytest.raises(InputError, match="Some: holds 1 instructions, fewer than the 2"):
        prepared(tmp_path, {"kind": "file", "path": "a.jsonl"}, rows=2)


def test_a_missing_file_of_a_repository(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file 'gone\.json'"):
        prepared(tmp_path, {"kind": "hub", "repo": str(tmp_path), "file": "gone.json"})


def test_planted_prompts_need_a_number() -> None:
    with pytest.raises(ValidationError, match="rows: required where the source is planted"):
        Instructions.model_validate({"label": "x", "source": {"kind": "planted", "seed": 1}})
