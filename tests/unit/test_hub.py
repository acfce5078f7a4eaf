"""Hub sources, through `datasets.load_dataset` on folders in the hub's own layout, and the hub's real errors."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import datasets.load
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from shallow_signals.config.sources import Columns, Dataset, FileSource, HubSource
from shallow_signals.data.hub import explain
from shallow_signals.data.ingest import ingest
from shallow_signals.files import InputError, read_parquet

httpx = datasets.load.httpx  # the HTTP library that the client of this version raises from
OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def parquet(folder: Path, rows: list[dict[str, Any]], split: str = "train", schema: pa.Schema | None = None) -> Path:
    """A repository as the hub stores it."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def read(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(data) if path.suffix == ".gz" else data).split(b"\n") if line]


def run(tmp_path: Path, source: HubSource | FileSource, **keys: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    root = keys.pop("data_root", None)
    manifest = ingest(Dataset(label="set", source=source, **keys), "set", tmp_path / "out", root, {})
    return manifest, read_parquet(tmp_path / "out" / "pairs.parquet").to_pylist()


def hub_source(repo: Path, converter: str, **keys: Any) -> HubSource:
    return HubSource(repo=str(repo), converter=converter, **keys)


# Real rows.


def test_helpsteer_rows(tmp_path: Path, shared_data: Path) -> None:
    with gzip.open(shared_data / "hub_layouts" / "helpsteer2_message_lists.json.gz", "rt") as file:
        rows = json.load(file)
    manifest, pairs = run(tmp_path, hub_source(parquet(tmp_path / "repo", rows), "message_lists"))
    assert manifest["candidates"] == manifest["pairs"]["train"] == len(pairs) == 95
    assert [pair["chosen"] for pair in pairs] == [row["chosen"][-1]["content"] for row in rows]
    assert all(turn.keys() == {"role", "content"} for pair in pairs for turn in pair["prompt"])


def test_ultrafeedback_binarized_with_its_test_split(tmp_path: Path, shared_data: Path) -> None:
    rows = []
    for row in read(shared_data / "hub_layouts" / "ultrafeedback_binarized_flat.jsonl.gz"):
        turn = {"content": row["prompt"], "role": "user"}
        lists = {side: [turn, {"content": row[side], "role": "assistant"}] for side in ("chosen", "rejected")}
        rows.append({"prompt": row["prompt"], **lists, "messages": lists["chosen"], **row["metadata"]})
    repo = parquet(parquet(tmp_path / "repo", rows[:800], "train_prefs"), rows[800:], "test_prefs")
    source = hub_source(repo, "message_lists", split="train_prefs", test_split="test_prefs")
    manifest, pairs = run(tmp_path, source)
    assert manifest["filtered"] == {"tie": 111}
    test = {(row["prompt"], row["chosen"][1]["content"]) for row in rows[800:]}
    assert all((pair["split"] == "test") == ((pair["prompt"][0]["content"], pair["chosen"]) in test) for pair in pairs)
    assert manifest["candidates"] == manifest["rows"]["read"] == 1000
    assert sum(manifest["pairs"].values()) + sum(manifest["quarantined"].values()) == 1000 - 111


def test_shp_columns(tmp_path: Path, shared_data: Path) -> None:
    rows = read(shared_data / "hub_layouts" / "shp_columns_hh_helpful.jsonl.gz")
    repo = parquet(tmp_path / "repo", rows)
    manifest, pairs = run(tmp_path, hub_source(repo, "shp", min_score_ratio=1.0))
    assert manifest["rows"]["read"] == 600
    assert {pair["cluster"] for pair in pairs} <= {row["post_id"] for row in rows}
    with pytest.raises(InputError, match="score_ratio"):
        run(tmp_path, hub_source(repo, "shp"))


def test_at_most_so_many_pairs_of_a_post_whatever_the_order(tmp_path: Path, shared_data: Path) -> None:
    full = json.loads((shared_data / "hub_layouts" / "shp_one_full_row.json").read_text())
    full = full[0] if isinstance(full, list) else full
    rows = [full | {"human_ref_A": f"{full['human_ref_A']} {n}", "post_id": f"post{n % 2}"} for n in range(17)]
    rows.append(full | {"score_ratio": 1.1})
    kept = []
    for order in (rows, rows[::-1]):
        repo = parquet(tmp_path / f"repo{len(kept)}", order)
        manifest, pairs = run(tmp_path, hub_source(repo, "shp", pairs_per_post=3))
        assert manifest["filtered"] == {"pairs_per_post": 11, "score_ratio": 1}
        assert manifest["rows"] == {"read": 18, "with_pairs": 17, "without_pairs": 1}
        assert [pair["cluster"] for pair in pairs].count("post0") == 3
        kept.append({pair["pair_id"] for pair in pairs})
    assert kept[0] == kept[1]


ANNOTATION = pa.struct([("Rating", pa.string()), ("Rationale", pa.string())])
TYPED = pa.struct(
    [
        ("Rating", pa.string()),
        ("Rationale", pa.string()),
        ("Rationale For Rating", pa.string()),
        ("Type", pa.list_(pa.string())),
    ]
)
ULTRAFEEDBACK = pa.schema(
    [
        ("source", pa.string()),
        ("instruction", pa.string()),
        ("models", pa.list_(pa.string())),
        (
            "completions",
            pa.list_(
                pa.struct(
                    [
                        (name, pa.string())
                        for name in ("model", "principle", "custom_system_prompt", "response", "critique")
                    ]
                    + [("overall_score", pa.float64()), ("fine-grained_score", pa.float64())]
                    + [
                        (
                            "annotations",
                            pa.struct(
                                [
                                    ("helpfulness", TYPED),
                                    ("honesty", ANNOTATION),
                                    ("instruction_following", ANNOTATION),
                                    ("truthfulness", TYPED),
                                ]
                            ),
                        )
                    ]
                )
            ),
        ),
        ("correct_answers", pa.list_(pa.string())),
        ("incorrect_answers", pa.list_(pa.string())),
    ]
)


def ultrafeedback_row(instruction: str, ratings: dict[str, list[str]]) -> dict[str, Any]:
    """A row with the columns and types of the data set's card."""
    rest = {"Rationale": "r", "Rationale For Rating": "f", "Type": ["1"]}
    return {
        "source": "truthful_qa",
        "instruction": instruction,
        "models": ["llama-2-13b-chat", "llama-2-7b-chat", "ultralm-65b", "vicuna-33b"],
        "completions": [
            {
                "model": f"model {n}",
                "response": f"{instruction} answer {n}",
                "overall_score": 7.5,
                "fine-grained_score": 4.5,
                "annotations": {aspect: {"Rating": values[n]} | rest for aspect, values in ratings.items()},
            }
            for n in range(4)
        ],
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }


def test_ultrafeedback_by_aspect(tmp_path: Path) -> None:
    ratings = {
        "helpfulness": ["4", "5", "4", "1"],
        "honesty": ["5", "5", "5", "5"],
        "instruction_following": ["N/A", "2", "3", "3"],
        "truthfulness": ["1", "2", "3", "4"],
    }
    repo = parquet(tmp_path / "repo", [ultrafeedback_row("q1", ratings), ultrafeedback_row("q2", ratings)], "train",
                   ULTRAFEEDBACK)  # fmt: skip
    expected = {"helpfulness": 5, "instruction_following": 2, "truthfulness": 6}
    for aspect, number in expected.items():
        manifest, pairs = run(tmp_path, hub_source(repo, "ultrafeedback_aspects", aspect=aspect))
        assert len(pairs) == 2 * number
        assert manifest["rows"]["read"] == 2 and manifest["candidates"] == 12
        assert sum(manifest["filtered"].values()) == 12 - 2 * number
        assert manifest["filtered"].get("not_rated", 0) == (6 if aspect == "instruction_following" else 0)
        for pair in pairs:
            n, m = int(pair["chosen"][-1]), int(pair["rejected"][-1])
            assert pair["margin"] == int(ratings[aspect][n]) - int(ratings[aspect][m]) > 0
            assert pair["cluster"] == pair["prompt_id"] and pair["aspect"] == aspect
    with pytest.raises(InputError, match=r"none of 2 rows became a pair \(tie 12\)"):
        run(tmp_path, hub_source(repo, "ultrafeedback_aspects", aspect="honesty"))


def test_rewardbench_is_a_test_set(tmp_path: Path, shared_data: Path) -> None:
    rows = read(shared_data / "hub_layouts" / "rewardbench_rows.jsonl")
    source = hub_source(parquet(tmp_path / "repo", rows, "filtered"), "rewardbench", split="filtered")
    manifest, pairs = run(tmp_path, source)
    assert manifest["pairs"] == {"train": 0, "test": 15}
    assert [pair["subset"] for pair in pairs] == [row["subset"] for row in rows]


def test_hh_from_the_hub_and_from_its_offline_file_are_the_same_pairs(tmp_path: Path, shared_data: Path) -> None:
    rows = read(shared_data / "hh_rlhf_harmless_test.jsonl.gz")
    (tmp_path / "repo" / "harmless-base").mkdir(parents=True)
    with gzip.open(tmp_path / "repo" / "harmless-base" / "test.jsonl.gz", "wt") as file:
        for row in rows:
            file.write(json.dumps({"chosen": row["raw_chosen"], "rejected": row["raw_rejected"]}) + "\n")
    offline = FileSource(
        path="hh_rlhf_harmless_test.jsonl.gz", columns=Columns(chosen="raw_chosen", rejected="raw_rejected")
    )
    source = hub_source(tmp_path / "repo", "hh_rlhf", data_dir="harmless-base", split="test", offline=offline)
    keys = {"holdout": 0.4, "train_pairs": 480}
    manifest, pairs = run(tmp_path, source, **keys)
    other_manifest, other_pairs = run(tmp_path, source, data_root=shared_data, **keys)
    assert pairs == other_pairs and len(pairs) > 1000
    assert {k: v for k, v in manifest.items() if k != "source"} == {
        k: v for k, v in other_manifest.items() if k != "source"
    }
    assert "content" in manifest["source"] and "sha256" in other_manifest["source"]["read_from"]
    # The file's own parsing keeps the chosen side's prompt where the two differ: one such row can be rendered.
    parsed = hub_source(
        tmp_path / "repo", "hh_rlhf", data_dir="harmless-base", split="test", offline=FileSource(path=offline.path)
    )
    _, plain = run(tmp_path, parsed, data_root=shared_data)
    _, all_pairs = run(tmp_path, source)
    assert len({pair["pair_id"] for pair in plain} - {pair["pair_id"] for pair in all_pairs}) == 1


# What can go wrong.


def response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/api/datasets/org/set"))


REAL_ERRORS = {
    "gated": (GatedRepoError("403 Forbidden", response=response(403)), "accept its licence.*hf auth login"),
    "gated, no token": (
        GatedRepoError("401 Unauthorized", response=response(401)),
        "accept its licence.*hf auth login",
    ),
    "repository": (RepositoryNotFoundError("404", response=response(404)), "not found; check the keys 'repo'"),
    "revision": (RevisionNotFoundError("404", response=response(404)), "no such revision.*make pin"),
    "offline": (OfflineModeIsEnabled("HF_HUB_OFFLINE=1"), "out of reach.*data_root"),
    "no network": (httpx.ConnectError("[Errno -2] Name or service not known"), "out of reach.*data_root"),
    "timeout": (httpx.ConnectTimeout("timed out"), "out of reach.*data_root"),
}


@pytest.mark.parametrize("kind", REAL_ERRORS)
def test_errors_of_the_hub_are_one_line(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real exception, raised where the client raises it, on its way through the real `load_dataset`."""
    error, message = REAL_ERRORS[kind]

    def download(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(HfApi, "hf_hub_download", download)
    if kind != "offline":
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("datasets.load._raise_if_offline_mode_is_enabled", lambda: None)
    source = HubSource(repo="org/set", revision=NEW, converter="message_lists")
    with pytest.raises(InputError, match=message) as caught:
        run(tmp_path, source)
    text = str(caught.value)
    assert "org/set" in text and NEW in text and "\n" not in text


def test_bare_errors_are_explained_too() -> None:
    source = HubSource(repo="org/set", converter="message_lists")
    wrapped = LocalEntryNotFoundError("no file")
    wrapped.__cause__ = OfflineModeIsEnabled("offline")
    assert "out of reach" in explain(wrapped, source, "train", None)
    assert "not found" in explain(datasets.exceptions.DatasetNotFoundError("it"), source, "train", None)
    assert "accept its licence" in explain(GatedRepoError("403", response=response(403)), source, "train", None)
    odd = explain(RuntimeError("first line\nsecond"), source, "train", None)
    assert "RuntimeError: first line" in odd and "\n" not in odd and "not pinned" in odd


def test_splits_configurations_and_folders_that_are_not_there(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    repo = parquet(tmp_path / "repo", rows)
    for keys, message in [
        ({"split": "validation"}, r"no split 'validation'; allowed: 'train'; check"),
        ({"config_name": "english"}, r"no configuration 'english'; allowed: .*check the key 'config_name'"),
        ({"data_dir": "nowhere"}, "not found"),
    ]:
        with pytest.raises(InputError, match=message):
            run(tmp_path, hub_source(repo, "columns", **keys))
    with pytest.raises(InputError, match="not found"):
        run(tmp_path, hub_source(tmp_path / "nothing", "columns"))
    with pytest.raises(InputError, match="needs the column 'score'; the data has: 'chosen', 'prompt', 'rejected'"):
        run(tmp_path, hub_source(repo, "columns", columns=Columns(margin="score")))


def test_a_damaged_file_of_a_repository(tmp_path: Path) -> None:
    repo = parquet(tmp_path / "repo", [{"prompt": "q" * 5000, "chosen": "a", "rejected": "b"}])
    file = next((repo / "data").iterdir())
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(InputError, match="can't be loaded") as caught:
        run(tmp_path, hub_source(repo, "columns"))
    assert "\n" not in str(caught.value)


def test_the_cache_of_another_revision_is_not_taken_for_the_pinned_one(tmp_path: Path) -> None:
    """Without the hub, `load_dataset` falls back on whatever revision was cached last."""
    parquet(tmp_path / "set", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    made = Path(datasets.load_dataset(str(tmp_path / "set"), split="train").cache_files[0]["filename"]).parent
    shutil.copytree(made, tmp_path / "cache" / "org___set" / "default" / "0.0.0" / OLD)

    def source(revision: str | None) -> HubSource:
        return HubSource(repo="org/set", revision=revision, converter="columns")

    manifest, _ = run(tmp_path, source(OLD))
    assert manifest["source"]["commit"] == OLD
    assert run(tmp_path, source(None))[0]["source"]["commit"] == OLD
    with pytest.raises(InputError, match=f"the local cache holds another revision .{OLD}."):
        run(tmp_path, source(NEW))


def test_a_revision_of_its_own_comes_before_the_pin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def load(*_: Any, **keys: Any) -> Any:
        asked.append(keys["revision"])
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", load)
    for revision in (None, OLD):
        source = HubSource(repo="org/set", revision=revision, converter="columns")
        with pytest.raises(InputError):
            ingest(Dataset(label="set", source=source), "set", tmp_path, None, {"org/set": NEW})
    assert asked == [NEW, OLD]
