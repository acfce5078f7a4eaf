"""Every configuration's plan, on a machine that reaches no network."""

from __future__ import annotations

import pytest

from workflow_copy import Workflow


def test_paper_plan_names_every_table(workflow: Workflow) -> None:
    planned = workflow.planned("all")
    # 4 data sets x 9 truncations, 4 aspects x 7 truncations
    assert planned["train_reward_model"] == 4 * 9 + 4 * 7
    assert planned["make_table"] == 3
    assert planned["provide_model"] == 5  # Gemma, Llama, the policy and reference of Figures 2 to 5, and FsfairX
    assert planned["draw_implicit_rewards"] == 2
    assert planned["gather_position"] == planned["compare_ranks"] == 2
    assert planned["choose_examples"] == planned["draw_examples"] == planned["draw_position"] == 1
    # Table 3: Llama and its nine policies; what they are compared with is stored.
    assert planned["generate_outputs"] == 10
    assert planned["fetch_length_control"] == 2


def test_demo_plan(workflow: Workflow) -> None:
    planned = workflow.planned("--profile", "profiles/demo", "all")
    assert planned["make_table"] >= 1
    assert planned["run_probe"] >= 1


def test_small_plan_in_every_size(workflow: Workflow) -> None:
    """Each asks for more than the one before."""
    quick, standard, full = (
        workflow.planned("--profile", "profiles/small", "--config", f"size={size}", "--", "all")
        for size in ("quick", "standard", "full")
    )
    assert quick["make_table"] == full["make_table"] >= 1
    trained = ("train_reward_model", "train_dpo")
    assert [standard[rule] > quick[rule] for rule in trained] == [True, True]
    assert [full[rule] > standard[rule] for rule in trained] == [True, True]


def test_small_plan_of_shuffled_labels(workflow: Workflow) -> None:
    """Five shuffles beside the true labels, held against one half, and nothing else."""
    planned = workflow.planned("--profile", "profiles/small", "--config", "size=shuffled", "--", "all")
    assert [planned[rule] for rule in ("train_reward_model", "train_dpo", "score_heldout")] == [6, 6, 6]
    assert planned["check_reward_models"] == planned["make_table"] == planned["draw_implicit_rewards"] == 1
    assert not {"score_benchmark", "generate_outputs", "decode", "run_probe", "compare_ranks"} & planned.keys()


@pytest.mark.parametrize(
    "target",
    [
        *("table1", "table2", "table3", "table4", "tables", "dominance", "probe"),
        *("figure1", "figure2", "figure3", "figure4", "figure5", "position"),
    ],
)
def test_named_targets(workflow: Workflow, target: str) -> None:
    assert workflow.planned("--configfile", "micro.yaml", "--", target)


def test_table_3_in_every_configuration(workflow: Workflow) -> None:
    """The base model's other sample is generated only where nothing is stored to compare with."""
    paper = workflow.planned("table3")
    assert (paper["generate_outputs"], paper["judge_outputs_skywork"], paper["train_dpo"]) == (10, 1, 9)
    demo = workflow.planned("--configfile", "config/demo.yaml", "--", "table3")
    assert demo["generate_outputs_planted_skywork"] == demo["make_table3"] == 1
    apart = workflow.planned("--configfile", "micro.yaml", "--config", "process_per=model", "--", "table3")
    assert apart["generate_outputs"] == 5
    assert "judge_outputs_skywork" not in workflow.planned("--configfile", "config/small.yaml", "--", "all")


def test_small_policies_are_read_by_one_process(workflow: Workflow) -> None:
    """All that figure 2 asks of: the policy and, for `topshare`, those trained on one half each."""
    together = workflow.planned("--configfile", "micro.yaml", "--", "figure2")
    assert together["score_dpo_logprobs_one_one"] == 1 and "score_dpo_logprobs" not in together
    apart = workflow.planned("--configfile", "micro.yaml", "--config", "process_per=model", "--", "figure2")
    assert apart["score_dpo_logprobs"] == 3


def test_small_shards_are_written_by_one_process(workflow: Workflow) -> None:
    """One job a data set, else one a truncation: three that reward models and two more that DPO trains on, and two."""
    together = workflow.planned("--configfile", "micro.yaml", "--", "all")
    assert {name: jobs for name, jobs in together.items() if name.startswith("write_shards")} == {
        "write_shards_one_tiny": 1,
        "write_shards_two_tiny": 1,
    }
    apart = workflow.planned("--configfile", "micro.yaml", "--config", "process_per=model", "--", "all")
    assert apart["write_shards"] == 3 + 2 + 2


def test_layers_that_models_share_are_read_once(workflow: Workflow) -> None:
    """For each test set of an experiment with an adapter on its upper layers; never for the paper's whole models."""
    path = workflow.folder / "micro.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("reward_recipes:\n  tiny: {", "reward_recipes:\n  tiny: {lora: {first_layer: 1}, "))
    assert workflow.planned("--configfile", "micro.yaml", "--", "tables")["read_trunk"] == 4
    apart = workflow.planned("--configfile", "micro.yaml", "--config", "process_per=model", "--", "tables")
    assert apart["read_trunk"] == 4
    path.write_text(text)
    assert "read_trunk" not in workflow.planned("--configfile", "micro.yaml", "--", "tables")
    assert "read_trunk" not in workflow.planned("tables")


def test_figures_3_and_4_in_every_configuration(workflow: Workflow) -> None:
    """One decoding run an instruction set; policies trained again only where they are asked for."""
    paper = workflow.planned("figure3", "figure4", "dominance")
    assert (paper["decode"], paper["read_texts"], paper["score_decoded"]) == (2, 1, 2)
    assert paper["provide_model"] == 3  # policy, reference, reward model
    assert "decode_retrained" not in paper and "train_dpo" not in paper
    demo = workflow.planned("--configfile", "config/demo.yaml", "--", "figure3", "figure4", "dominance")
    assert (demo["decode"], demo["decode_retrained"], demo["read_texts"], demo["score_decoded"]) == (3, 2, 1, 3)
    apart = workflow.planned("--configfile", "micro.yaml", "--config", "process_per=model", "--", "figure4")
    assert (apart["decode"], apart["decode_retrained"], apart["train_dpo"]) == (1, 1, 2)
    assert workflow.planned("--configfile", "config/small.yaml", "--", "figure4")["decode"] == 1


def test_a_missing_key_is_refused_before_any_job(workflow: Workflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its judge is asked; tables that ask no judge need no key."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    path = workflow.folder / "micro.yaml"
    judge = "judges:\n  asked: {kind: api, model: gpt, input_price: 1, output_price: 1}\n"
    text = path.read_text().replace("judges:\n", judge)
    path.write_text(text.replace("policies: one, judge: truth", "policies: one, judge: asked"))
    result = workflow.run("--configfile", "micro.yaml", "--", "table3", check=False)
    assert result.returncode != 0
    assert "set the environment variable OPENAI_API_KEY" in result.stdout
    assert not list((workflow.folder / "results").glob("**/*.parquet"))
    assert workflow.planned("--configfile", "micro.yaml", "--", "table3")["judge_outputs_one"] == 1
    pairs = "results/micro/data/one/pairs.parquet"
    workflow.run("--configfile", "micro.yaml", "--quiet", "rules", "--", pairs)
    assert (workflow.folder / pairs).is_file()


def test_unpinned_paper_run_is_refused_before_any_job(workflow: Workflow) -> None:
    result = workflow.run("table4", check=False)
    assert result.returncode != 0
    assert "google/gemma-2b-it" in result.stdout
    assert "make pin" in result.stdout
    assert not list((workflow.folder / "results").glob("**/pairs.parquet"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tabels={}", ["tabels", "unknown key", "tables"]),
        ("cuts=[50,101]", ["cuts.1", "101"]),
        ("process_per=gpu", ["process_per", "'gpu'", "'model' or 'experiment'"]),
        ("tables={table1: [skywrok]}", ["tables.table1", "skywrok", "skywork"]),
        ("reward_models={skywork: {truncations: [hed50]}}", ["reward_models.skywork.truncations.0", "hed50", "head50"]),
        ("alpacaeval={skywork: {instructions: alpaca}}", ["alpacaeval.skywork.against", "'alpaca'", "columns.output"]),
        ("process_per=experiment", ["alpacaeval.skywork.engine", "process_per: model"]),
        ("statistics={resamples: few}", ["statistics.resamples", "'few'", "integer"]),
    ],
)
def test_wrong_configuration_stops_a_dry_run(workflow: Workflow, override: str, words: list[str]) -> None:
    result = workflow.run("--dry-run", "--config", override, "--", "all", check=False)
    assert result.returncode != 0
    for word in words:
        assert word in result.stdout
    assert "Traceback" not in result.stdout
