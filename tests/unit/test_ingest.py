"""The whole step: real files to pairs, with counts that add up and draws that don't depend on the order of rows."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from shallow_signals.config.sources import Columns, Dataset, DataSource, FileSource, HubSource, PlantedSource
from shallow_signals.data.ingest import ingest
from shallow_signals.data.pairs import PAIRS, pair_id, prompt_id
from shallow_signals.data.quarantine import FILTERS, QUARANTINE, REASONS
from shallow_signals.files import InputError

ARGUMENTS = FileSource(path="human_written_arguments.jsonl.gz", columns=Columns(cluster="topic"))


def run(out: Path, source: DataSource, root: Path | None = None, **keys: Any) -> dict[str, Any]:
    return ingest(Dataset(label="a set", source=source, **keys), "set", out, root, {})


def pairs_of(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "pairs.parquet").to_pylist()


def assert_adds_up(out: Path, manifest: dict[str, Any]) -> None:
    """Counts against the files and against each other."""
    assert json.loads((out / "manifest.json").read_text()) == manifest
    pairs, quarantine = pq.read_table(out / "pairs.parquet"), pq.read_table(out / "quarantine.parquet")
    assert pairs.schema.equals(PAIRS) and quarantine.schema.equals(QUARANTINE)
    parts = {split: pairs["split"].to_pylist().count(split) for split in ("train", "test")}
    assert manifest["pairs"] == parts
    reasons = quarantine["reason"].to_pylist()
    assert manifest["quarantined"] == {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    assert set(reasons) <= set(REASONS) and set(manifest["filtered"]) <= set(FILTERS)
    others = [manifest[key].values() for key in ("quarantined", "filtered", "left_out_by_subset")]
    assert manifest["candidates"] == len(pairs) + sum(map(sum, others))
    rows = manifest["rows"]
    assert rows["read"] == rows["with_pairs"] + rows["without_pairs"]
    identities = pairs["pair_id"].to_pylist()
    assert len(set(identities)) == len(identities)


def some_rows(n: int = 400) -> list[dict[str, Any]]:
    return [
        {"prompt": f"question {i // 2}", "chosen": f"yes {i}", "rejected": f"no {i}", "topic": f"t{i % 40}"}
        for i in range(n)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> FileSource:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FileSource(path=str(path), columns=Columns(cluster="topic"))


@pytest.mark.parametrize(
    ("name", "keys", "rows", "quarantined"),
    [
        ("rmb_pairwise_ai_labels.parquet", {"subset": "subset"}, 14532, {"empty_rejected", "equal_responses"}),
        ("hh_rlhf_helpful_test.jsonl.gz", {}, 2343, {"empty_rejected", "roles_do_not_alternate"}),
        ("human_written_arguments.jsonl.gz", {"cluster": "topic"}, 7919, set()),
        ("alpacaeval_crossmodel_derived.parquet", {"split": "split"}, 7486, set()),
    ],
)
def test_real_files(
    name: str, keys: dict[str, str], rows: int, quarantined: set[str], tmp_path: Path, shared_data: Path
) -> None:
    manifest = run(tmp_path, FileSource(path=name, columns=Columns(**keys)), shared_data, holdout=0.25)
    assert_adds_up(tmp_path, manifest)
    assert manifest["rows"]["read"] == manifest["candidates"] == rows
    assert manifest["quarantined"].keys() - {"duplicate"} == quarantined
    assert manifest["prompts_in_both_parts"] == 0
    for pair in pairs_of(tmp_path)[:200]:
        assert pair["pair_id"] == pair_id(pair) and pair["prompt_id"] == prompt_id(pair["prompt"])
        assert pair["source"] == name


def test_quarantined_duplicates_are_those_a_dictionary_finds(tmp_path: Path, shared_data: Path) -> None:
    manifest = run(tmp_path, ARGUMENTS, shared_data)
    with gzip.open(shared_data / ARGUMENTS.path, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    texts = [(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
    assert manifest["quarantined"] == {"duplicate": len(texts) - len(set(texts))}
    swapped = {(prompt, rejected, chosen) for prompt, chosen, rejected in texts}
    assert manifest["contradictory"] == len(swapped & set(texts)) // 2 > 0


def test_the_split_of_the_data_is_followed(tmp_path: Path, shared_data: Path) -> None:
    name, columns = "alpacaeval_pairs_test.parquet", Columns(split="split", generator="model", margin="margin")
    manifest = run(tmp_path, FileSource(path=name, columns=columns), shared_data)
    assert manifest["pairs"]["train"] == 0 and manifest["pairs"]["test"] > 9000
    assert len({pair["generator"] for pair in pairs_of(tmp_path)}) > 50
    assert all(pair["margin"] > 0 for pair in pairs_of(tmp_path))


def test_the_boolean_column_of_the_rebuilt_benchmark(tmp_path: Path, shared_data: Path) -> None:
    name = "rewardbench_core_rebuilt.parquet"
    source = FileSource(path=name, columns=Columns(subset="subset"), keep_where="official_size_sample")
    manifest = run(tmp_path, source, shared_data)
    assert_adds_up(tmp_path, manifest)
    table = pq.read_table(shared_data / name, columns=["official_size_sample"])
    assert manifest["filtered"]["keep_where"] == table["official_size_sample"].to_pylist().count(False)
    assert {pair["subset"] for pair in pairs_of(tmp_path)} >= {"llmbar-natural", "hep-python"}


def test_splits_and_subsets_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = some_rows()
    shuffled = rows.copy()
    random.Random(0).shuffle(shuffled)
    keys = {"holdout": 0.3, "train_pairs": 100, "test_pairs": 50}
    found = []
    for number, order in enumerate((rows, shuffled, rows[:200])):
        manifest = run(tmp_path / f"out{number}", write(tmp_path / f"{number}.jsonl", order), **keys)
        assert_adds_up(tmp_path / f"out{number}", manifest)
        found.append({(pair["pair_id"], pair["split"]) for pair in pairs_of(tmp_path / f"out{number}")})
    assert found[0] == found[1] and len(found[0]) == 150
    assert found[0] != found[2]
    whole = run(tmp_path / "whole", write(tmp_path / "0.jsonl", rows), holdout=0.3)
    drawn = {(pair["pair_id"], pair["split"]) for pair in pairs_of(tmp_path / "whole")}
    assert found[0] < drawn and whole["left_out_by_subset"] == {"train": 0, "test": 0}


def test_the_held_out_share_is_near_what_was_asked_and_prompts_stay_together(tmp_path: Path) -> None:
    run(tmp_path, write(tmp_path / "rows.jsonl", some_rows(4000)), holdout=0.25)
    pairs = pairs_of(tmp_path)
    test = {pair["prompt_id"] for pair in pairs if pair["split"] == "test"}
    train = {pair["prompt_id"] for pair in pairs if pair["split"] == "train"}
    assert not test & train
    assert abs(len(test) / 2000 - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5  # four standard errors


def test_clusters_stay_together_when_asked(tmp_path: Path, shared_data: Path) -> None:
    manifest = run(tmp_path, ARGUMENTS, shared_data, holdout=0.25, split_by="cluster")
    pairs = pairs_of(tmp_path)
    topics = {split: {pair["cluster"] for pair in pairs if pair["split"] == split} for split in ("train", "test")}
    assert not topics["train"] & topics["test"]
    assert len(topics["train"] | topics["test"]) == 11 and manifest["pairs"]["test"] > 0
    run(tmp_path / "by_prompt", ARGUMENTS, shared_data, holdout=0.25)  # negative control
    pairs = pairs_of(tmp_path / "by_prompt")
    topics = {split: {pair["cluster"] for pair in pairs if pair["split"] == split} for split in ("train", "test")}
    assert topics["train"] & topics["test"]


def test_an_empty_part_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [row | {"topic": "one"} for row in some_rows()])
    with pytest.raises(
        InputError, match=r"datasets.set.holdout: the (train|test) part is empty \(400 pairs of 1 clusters"
    ):
        run(tmp_path, source, holdout=0.5, split_by="cluster")
    run(tmp_path, source, holdout=0.5)


def test_a_test_split_that_the_offline_file_does_not_have_is_refused(tmp_path: Path) -> None:
    offline = write(tmp_path / "rows.jsonl", some_rows())
    source = HubSource(repo="org/set", test_split="test", converter="columns", offline=offline)
    with pytest.raises(InputError, match=r"datasets.set.source.test_split: the test part is empty"):
        run(tmp_path, source, tmp_path)
    assert run(tmp_path, source, tmp_path, holdout=0.5)["pairs"]["test"] > 0


def test_the_planted_world_goes_the_same_way(tmp_path: Path) -> None:
    source = PlantedSource(profile="front", pairs=300, test_pairs=100, seed=3)
    manifest = run(tmp_path, source)
    assert_adds_up(tmp_path, manifest)
    assert manifest["candidates"] == 400 and manifest["quarantined"].keys() <= {"duplicate"}
    assert {pair["source"] for pair in pairs_of(tmp_path)} == {"planted:front"}


def test_a_run_is_repeatable_to_the_byte(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", some_rows())
    for name in ("one", "two"):
        run(tmp_path / name, source, holdout=0.3)
    for file in ("pairs.parquet", "quarantine.parquet", "manifest.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
