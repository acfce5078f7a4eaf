"""`make plan`: its jobs are the workflow's own, its tokens those of the run, and what can't fit is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shallow_signals.planning.dag import read_study
from shallow_signals.planning.planner import Planner
from shallow_signals.planning.sizes import Sizes
from workflow_copy import Workflow


def plan(workflow: Workflow, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = workflow.environment() | {"PYTHONPATH": str(workflow.folder / "workflow")}
    return subprocess.run(
        [sys.executable, "-m", "shallow_signals.planning", *arguments],
        cwd=workflow.folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
    )


def test_a_plan_made_before_the_run_foresees_its_tokens(finished: Workflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against what the finished run's trainers counted: within 5% for every model."""
    monkeypatch.chdir(finished.folder)
    planner = Planner(Sizes(read_study(None, [Path("micro.yaml")]).study, Path("nowhere")))
    results = finished.folder / "results" / "micro"
    found = list(results.glob("models/*/*/*/seed*/training.json"))
    assert len(found) >= 8
    for file in found:
        record = json.loads(file.read_text(encoding="utf-8"))
        epochs = record["params"]["recipe"]["epochs"]
        planned = planner.of(file.parent.relative_to(results).as_posix()).tokens
        assert abs(planned / (epochs * record["tokens_per_epoch"]) - 1) < 0.05, file


def test_no_response_takes_more_than_its_plan(finished: Workflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Responses end before their cap: a plan of sampling is an upper bound, near for a tiny model."""
    monkeypatch.chdir(finished.folder)
    planner = Planner(Sizes(read_study(None, [Path("micro.yaml")]).study, Path("nowhere")))
    results = finished.folder / "results" / "micro"
    found = [*results.glob("decoding/*/responses.parquet"), *results.glob("decoding/*/retrained/*.parquet")]
    assert len(found) >= 2
    for file in found:
        facts = json.loads(file.with_suffix(".meta.json").read_text(encoding="utf-8"))
        planned = planner.of(file.relative_to(results).as_posix())
        assert facts["tokens"] <= planned.generated <= 4 * facts["tokens"], file
        assert planned.tokens == 2 * planned.generated  # by the policy and by its reference
    assert planner.of("decoding/one/rewards/responses.parquet").tokens == 0  # the world itself is the judge


def test_a_size_says_what_it_leaves_to_the_largest(workflow: Workflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workflow.folder)
    asked = read_study(Path("profiles/small"), [], {"size": "quick"})
    lines = asked.left_to("full")
    assert "datasets.arguments.train_pairs: all in place of 160" in lines
    assert "reward_models.arguments.seeds: 2, 3" in lines
    assert any(line.startswith("dpo.hh_harmless.truncations: head40, ") for line in lines)
    assert read_study(Path("profiles/small"), [], {"size": "full"}).left_to("full") == []
    assert asked.cores == 2


def test_kept_beginnings_are_read_with_the_whole(workflow: Workflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workflow.folder)
    planner = Planner(Sizes(read_study(None, [Path("micro.yaml")]).study, Path("nowhere")))
    scored = (f"evaluations/reward/one/{t}/seed1/heldout.parquet" for t in ("full", "head50", "tail50"))
    full, head, tail = (planner.of(path).tokens for path in scored)
    assert 0 < full == head < tail


def test_a_trunk_and_the_rest_of_a_model_are_one_whole_reading(
    workflow: Workflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workflow.folder)

    def flops(path: str, first_layer: int = 0) -> float:
        recipe = f"reward_recipes: {{tiny: {{lora: {{rank: 4, first_layer: {first_layer}}}}}}}"
        Path("adapter.yaml").write_text(recipe, encoding="utf-8")
        study = read_study(None, [Path("micro.yaml"), Path("adapter.yaml")]).study
        return Planner(Sizes(study, Path("nowhere"))).of(path).flops

    for test in ("heldout", "planted"):
        scored, trunk = f"evaluations/reward/one/full/seed1/{test}.parquet", f"trunks/one/{test}.safetensors"
        whole, rest, below = flops(scored), flops(scored, first_layer=1), flops(trunk, first_layer=1)
        assert 0 < rest < whole
        assert rest + below == pytest.approx(whole)


def test_every_job_is_in_the_plan(workflow: Workflow) -> None:
    printed = plan(workflow, "--configfile", "micro.yaml")
    assert printed.returncode == 0, printed.stdout
    counted = workflow.planned("--configfile", "micro.yaml", "--", "all")
    lines = {line.split()[0]: line.split()[1] for line in printed.stdout.splitlines() if len(line.split()) > 1}
    assert {rule: int(lines[rule]) for rule in counted} == counted
    assert int(lines["all"]) == sum(counted.values())


def test_the_papers_plan_needs_no_network_and_an_impossible_one_is_refused(workflow: Workflow) -> None:
    target = "results/paper/models/dpo/skywork/full/seed42"
    good = plan(workflow, target)
    assert good.returncode == 0, good.stdout
    assert "train_dpo" in good.stdout
    (workflow.folder / "whole.yaml").write_text(
        "dpo_recipes: {trl_llama: {weights: float32}}\ndpo: {skywork: {recipe: trl_llama}}\n", encoding="utf-8"
    )
    bad = plan(workflow, "--configfile", "whole.yaml", "--", target)
    assert bad.returncode == 1
    assert "cannot be made: models/dpo/skywork/full/seed42: needs" in bad.stdout
    assert "shard the weights" in bad.stdout
