"""The demo in miniature, from raw pairs to tables: what it makes, and what a killed run loses (nothing)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from shallow_signals.config.sources import PlantedSource
from shallow_signals.data.planted import true_reward
from shallow_signals.models.logprob_files import read_logprobs
from workflow_copy import Workflow, copy_workflow

CONFIG = ("--configfile", "micro.yaml", "--quiet", "rules", "--", "all")


def test_every_table_and_figure_is_there(finished: Workflow) -> None:
    results = finished.folder / "results/micro"
    for table in ("table1", "table2", "table3", "table4", "controls"):
        frame = pd.read_csv(results / f"tables/{table}.csv")
        cells = frame[frame["value"].notna()]
        assert len(cells)
        assert cells["n"].notna().all()
        assert "\\toprule" in (results / f"tables/{table}.tex").read_text()
    names = ("reward_by_cut", "figure1", "figure2", "figure3", "figure4", "figure5", "position")
    figures = [f"figures/{name}" for name in names]
    for picture in (*figures, "probe/one"):
        assert (results / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
        assert (results / f"{picture}.pdf").read_bytes().startswith(b"%PDF")
    assert (results / "config.yaml").is_file()


def test_table_cells_equal_a_recount_of_the_scores(finished: Workflow) -> None:
    results = finished.folder / "results/micro"
    table = pd.read_csv(results / "tables/controls.csv", dtype=str)
    for truncation, name in (("full", "Original Dataset"), ("head50", "50%"), ("tail50", "tail 50%")):
        scores = pq.read_table(results / f"evaluations/reward/one/{truncation}/seed1/heldout.parquet").to_pandas()
        whole = scores[scores["test"] == "full"]
        row = table[(table == name).any(axis=1) & (table == "full").any(axis=1)].iloc[0]
        assert float(row["value"]) == pytest.approx((whole["chosen"] > whole["rejected"]).mean(), abs=1e-6)


def test_checkpoints_are_safe_and_told(finished: Workflow) -> None:
    folder = finished.folder / "results/micro/models/reward/one/full/seed1"
    assert (folder / "model.safetensors").is_file()
    assert not [p for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pkl", ".pth")]
    record = json.loads((folder / "training.json").read_text())
    assert record["pairs"] == 64
    assert record["first_loss"] > 0
    assert record["inputs"].keys() == {"shards", "base"}


def test_implicit_rewards_are_the_trained_policys(finished: Workflow) -> None:
    """Recounted from the log-probabilities alone: beta cancels in an accuracy."""
    results = finished.folder / "results/micro"
    policy = read_logprobs(results / "logprobs/dpo/one/full/seed1/one.parquet")
    base = read_logprobs(results / "logprobs/base/tiny/one.parquet")
    assert len(policy) == 40
    assert len(base) == 104
    right = 0.0
    for key, (chosen, rejected) in policy.items():
        margin = (chosen.tokens - base[key][0].tokens).sum() - (rejected.tokens - base[key][1].tokens).sum()
        right += 1 if margin > 0 else 0
    curve = pd.read_csv(results / "signal/one.csv")
    head = curve[(curve["axis"] == "ratio") & (curve["curve"] == "head") & (curve["x"] == 100)]
    assert head["accuracy"].iloc[0] == right / 40


def test_signal_by_position_is_the_trained_policys(finished: Workflow) -> None:
    results = finished.folder / "results/micro"
    policy = read_logprobs(results / "logprobs/dpo/one/full/seed1/one.parquet")
    base = read_logprobs(results / "logprobs/base/tiny/one.parquet")
    gaps = [
        (policy[key][0].tokens[6] - base[key][0].tokens[6]) - (policy[key][1].tokens[6] - base[key][1].tokens[6])
        for key in policy
    ]
    frame = pd.read_csv(results / "figures/position.csv")
    rows = frame[(frame["quantity"] == "log_ratio") & (frame["measure"] == "signal") & (frame["x"] == 7)]
    assert rows["value"].iloc[0] == pytest.approx(sum(gaps) / 40, abs=1e-6)
    ranks = frame[(frame["quantity"] == "rank") & (frame["measure"] != "survivors")]
    assert ranks.groupby(["axis", "x"])["value"].sum().tolist() == pytest.approx(
        [1] * len(ranks.groupby(["axis", "x"]))
    )
    assert ranks["n"].max() == 16


def test_figure_1_shows_the_words_of_held_out_pairs(finished: Workflow) -> None:
    results = finished.folder / "results/micro"
    table = pd.read_csv(results / "figures/figure1.csv", keep_default_na=False)
    pairs = {row["pair_id"]: row for row in pq.read_table(results / "data/one/pairs.parquet").to_pylist()}
    for (key, side), rows in table.groupby(["pair_id", "side"]):
        assert pairs[key]["split"] == "test"
        expected = pairs[key]["prompt"][-1]["content"] if side == "prompt" else pairs[key][side]
        assert "".join(rows["token"]) == expected


def test_halves_of_the_pairs_pick_tokens_for_each_other(finished: Workflow) -> None:
    results = finished.folder / "results/micro"
    records = [json.loads((results / f"models/dpo/one/half{h}/seed1/training.json").read_text()) for h in (1, 2)]
    assert sum(record["pairs"] for record in records) == 64
    curve = pd.read_csv(results / "signal/one.csv")
    assert set(curve[curve["curve"] == "topshare"]["x"]) == set(curve[curve["curve"] == "random"]["x"]) == {25, 50}
    assert set(curve[curve["curve"] == "topshare"]["n"]) == {40}


def test_figure_4_is_a_recount_of_the_responses(finished: Workflow) -> None:
    """KL and reward of every strategy from the raw files; the reward by reading the text again."""
    results = finished.folder / "results/micro"
    source = PlantedSource(profile="front", pairs=64, test_pairs=40, seed=1, persistence=0.7)
    figure = pd.read_csv(results / "figures/figure4.csv")
    files = {"": "responses", "retrained": "retrained/again"}
    for kind, file in files.items():
        made = pd.read_parquet(results / f"decoding/one/{file}.parquet")
        for name, rows in made.groupby("strategy"):
            point = figure[(figure["name"] == name) & ((figure["kind"] == "retrained") == bool(kind))].iloc[0]
            assert point["n"] == len(rows) == 8
            assert point["kl"] == pytest.approx(rows["kl_sampling_reference"].map(sum).mean(), rel=1e-5)
            assert point["kl_sampled"] == pytest.approx(rows["log_ratio"].map(sum).mean(), rel=1e-4, abs=1e-5)
            assert point["reward"] == pytest.approx(np.mean([true_reward(t, source) for t in rows["text"]]), abs=1e-9)
    assert set(figure["kind"]) == {"reference", "policy", "mixing", "length", "threshold", "retrained"}
    assert figure[figure["kind"] == "retrained"]["parameter"].tolist() == [0.5]  # beta 0.1 against 0.2
    dominance = pd.read_csv(results / "tables/dominance.csv")
    assert dominance["strategy"].tolist() == ["length2", "threshold0.01", "again", "again", "again"]
    assert "\\toprule" in (results / "tables/dominance.tex").read_text()


def test_figure_3_shows_three_kinds_of_text(finished: Workflow) -> None:
    results = finished.folder / "results/micro"
    figure = pd.read_csv(results / "figures/figure3.csv")
    first = figure[figure["axis"] == "position"].groupby("text")["position"].min()
    assert first.to_dict() == {"own": 1, "chosen": 1, "rejected": 1, "continued": 3}
    own = figure[(figure["text"] == "own") & (figure["axis"] == "position")].set_index("position")
    made = pd.read_parquet(results / "decoding/one/responses.parquet")
    kls = made[made["strategy"] == "policy"]["kl_policy_reference"]
    for position, row in own.iterrows():
        alive = [kl[int(position) - 1] for kl in kls if len(kl) >= position]
        assert (row["live"], row["kl"]) == (len(alive), pytest.approx(np.mean(alive), rel=1e-5))


def test_dpo_starts_at_ln_2(finished: Workflow) -> None:
    for truncation in ("full", "head50", "tail50"):
        folder = finished.folder / f"results/micro/models/dpo/one/{truncation}/seed1"
        record = json.loads((folder / "training.json").read_text())
        assert abs(record["first_loss"] - 0.693147) < 1e-3


def test_killed_run_ends_in_the_same_tables(finished: Workflow, tmp_path: Path) -> None:
    """SIGKILL for Snakemake and its jobs while models train; the next call ends where an undisturbed run ends."""
    copy = copy_workflow(tmp_path)
    with subprocess.Popen(
        copy.command(*CONFIG),
        cwd=copy.folder,
        env=copy.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        log = copy.folder / "logs/micro/train_reward_models/one.log"
        deadline = time.monotonic() + 240
        while not log.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        assert process.poll() is None, "the run ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
    copy.run("--unlock", "--configfile", "micro.yaml")
    copy.run(*CONFIG)
    for path in ("tables/table1.csv", "tables/table2.csv", "tables/controls.csv", "figures/reward_by_cut.csv"):
        assert (copy.folder / "results/micro" / path).read_bytes() == (
            finished.folder / "results/micro" / path
        ).read_bytes()
