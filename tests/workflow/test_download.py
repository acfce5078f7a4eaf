"""`make download`: all that a run fetches is fetched first, and nothing that is left reaches for the hub."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

import checkpoints
from workflow_copy import ROOT, Workflow


def downloads() -> list[str]:
    """The rules that the Makefile stops at."""
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("DOWNLOADS := ")).split()[2:]


def repository(folder: Path) -> Path:
    """A data set as the hub lays it out."""
    rows = [
        {
            side: [{"role": "user", "content": f"Question {n}"}, {"role": "assistant", "content": f"{side} {n}"}]
            for side in ("chosen", "rejected")
        }
        for n in range(40)
    ]
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / "train-00000-of-00001.parquet")
    return folder


def test_after_the_download_no_step_reads_a_source(workflow: Workflow, tmp_path: Path) -> None:
    study = yaml.safe_load((workflow.folder / "micro.yaml").read_text(encoding="utf-8"))
    hub = {"kind": "hub", "repo": str(repository(tmp_path / "repository")), "converter": "message_lists"}
    study["datasets"] = {name: {"label": name, "holdout": 0.3, "source": hub} for name in ("one", "two", "bench")}
    world = {"kind": "planted", "profile": "front", "pairs": 1, "test_pairs": 1, "seed": 1}
    study["datasets"]["world"] = {"label": "World", "source": world}  # its truth judges
    study["judges"] = {"truth": {"kind": "planted", "dataset": "world"}}
    base = {"kind": "folder", "path": str(checkpoints.chatml(tmp_path / "base"))}
    study["models"] = {"tiny": {"label": "tiny", "source": base}}
    study["tables"] = {"table1": ["two"], "table2": [], "table3": [], "table4": [], "controls": []}
    study["reward_models"]["two"]["benchmarks"] = []
    (workflow.folder / "micro.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")

    call = ("--configfile", "micro.yaml")
    workflow.run(*call, "--until", *downloads(), "--", "all")
    made = {
        path.relative_to(workflow.folder / "results/micro").as_posix() for path in workflow.folder.rglob("results/**/*")
    }
    assert {"models/base/tiny/config.json", "data/one/pairs.parquet", "data/two/pairs.parquet"} <= made
    assert not any("tokens" in path or "bench" in path.split("/") for path in made)  # neither more nor what is not used
    left = workflow.planned(*call, "--", "all")
    assert left.keys() >= {"tokenize_pairs", "train_dpo_one"}
    assert not left.keys() & set(downloads())
    reading = [
        path.stem
        for path in (ROOT / "workflow" / "scripts").glob("*.py")
        if "ModelSource" in path.read_text() or "data_root" in path.read_text()
    ]
    assert set(reading) - {"job"} <= set(downloads())  # no other script is handed a source
