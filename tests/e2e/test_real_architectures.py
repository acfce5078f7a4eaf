"""The paper's configuration on a tiny Gemma and a tiny Llama-3: an overlay replaces sources and sizes, nothing else.

Both checkpoints are random, with chat templates that behave as the real ones do. Data sets are real pairs in the hub's
layout. What comes out is held against plain transformers: a template, a tokenizer, one text at a time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import checkpoints
import realdata
from shallow_signals.config.load import merge
from shallow_signals.decoding import generate, length_control, mixing, policy, reference
from shallow_signals.models.templates import render_prompt
from workflow_copy import Workflow, copy_workflow

RUN = "tiny_paper"
LENGTH = 512
SUBSETS = {"alpacaeval-easy": 6, "mt-bench-hard": 4, "xstest-should-refuse": 5, "hep-python": 2}


def hub_layout(folder: Path, split: str, rows: list[dict[str, Any]]) -> str:
    """Rows as a data set's repository holds them; the folder's path."""
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / f"{split}-00000-of-00001.parquet")
    return str(folder)


def skywork(shared: Path) -> list[dict[str, Any]]:
    """Real pairs as Skywork's message lists; one conversation opens with a system turn, which Gemma refuses."""
    rows = []
    for row in realdata.real_pairs(shared, realdata.HARMLESS, 60).to_pylist():
        turns = row["prompt"] if len(rows) else [{"role": "system", "content": "Answer briefly."}, *row["prompt"]]
        answers = {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
        rows.append({side: [*turns, *answers[side]] for side in answers} | {"source": "real"})
    return rows


def rewardbench(shared: Path) -> list[dict[str, Any]]:
    """Rows of the rebuilt benchmark in the published columns."""
    columns = ["id", "subset", "prompt", "chosen", "rejected"]
    table = pq.read_table(shared / "rewardbench_core_rebuilt.parquet", columns=columns).to_pandas()
    parts = [table[table["subset"] == name].head(number) for name, number in SUBSETS.items()]
    rows: list[dict[str, Any]] = pd.concat(parts).to_dict("records")
    return [{**row, "id": number} for number, row in enumerate(rows)]


def overlay(folder: Path, shared: Path) -> dict[str, Any]:
    """Sources, sizes, and which of the paper's experiments run."""
    gemma, llama = checkpoints.gemma(folder / "gemma"), checkpoints.llama3(folder / "llama")
    other = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
    other.save_pretrained(folder / "other")
    AutoTokenizer.from_pretrained(llama).save_pretrained(folder / "other")
    sources = {"gemma_2b_it": gemma, "llama31_8b_instruct": llama, "llama3_sft": llama}
    sources["llama3_iterative_dpo"] = folder / "other"
    small = {"global_batch": 16, "max_length": LENGTH}
    return {
        "run": RUN,
        "models": {name: {"source": {"kind": "folder", "path": str(path)}} for name, path in sources.items()},
        "datasets": {
            "skywork": {"source": {"repo": hub_layout(folder / "skywork", "train", skywork(shared))}},
            "rewardbench": {"source": {"repo": hub_layout(folder / "bench", "filtered", rewardbench(shared))}},
        },
        "reward_recipes": {"rlhflow_gemma_2b": small},
        "dpo_recipes": {"trl_llama": small},
        "reward_models": {"skywork": {"truncations": ["full", "head50"]}},
        "dpo": {"skywork": {"recipe": "trl_llama", "truncations": ["full", "head50"]}},  # OpenRLHF trains on GPUs only
        "implicit_rewards": {"skywork": {"max_length": LENGTH, "ratios": [25, 50, 100], "lengths": [4, 16]}},
        "tables": {"table1": ["skywork"], "table2": [], "table3": [], "table4": [], "controls": [], "verdicts": []},
        "figures": {"figure2": ["skywork"], "figure3": [], "figure4": [], "figure5": []},
        "probe": [],
        "statistics": {"resamples": 100},
        "cuts": [25, 50, 100],
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    """The finished run's folder."""
    copy: Workflow = copy_workflow(tmp_path_factory.mktemp("paper"))
    file = copy.folder / "config.yaml"
    config = merge(
        yaml.safe_load(file.read_text(encoding="utf-8")), overlay(tmp_path_factory.mktemp("sources"), shared_data)
    )
    for model in config["models"].values():  # another kind of source takes the place of the old one's keys
        if model["source"]["kind"] == "folder":
            model["source"] = {key: model["source"][key] for key in ("kind", "path")}
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    policies = [f"results/{RUN}/models/dpo/skywork/{cut}/seed42" for cut in ("full", "head50")]
    copy.run("--quiet", "rules", "--", "table1", "figure2", *policies)
    return copy.folder / "results" / RUN


def rendered(tokenizer: Any, turns: list[dict[str, str]], **options: Any) -> list[int]:
    """RLHFlow's way: the template's text without BOS, which the tokenizer then adds once."""
    text = tokenizer.apply_chat_template(turns, tokenize=False, **options).replace(tokenizer.bos_token, "")
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids


@pytest.mark.parametrize(
    ("model", "dataset"),
    [("gemma_2b_it", "skywork"), ("gemma_2b_it", "rewardbench"), ("llama31_8b_instruct", "skywork")],
)
def test_every_prompt_starts_with_bos_once_and_ends_with_the_generation_prompt(
    results: Path, model: str, dataset: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(results / "models" / "base" / model)
    pairs = {row["pair_id"]: row for row in pq.read_table(results / "data" / dataset / "pairs.parquet").to_pylist()}
    rows = pq.read_table(results / "data" / dataset / "tokens" / f"{model}.parquet").to_pylist()
    assert len(rows) == len(pairs) > 15
    folded = 0
    for row in rows:
        turns = pairs[row["pair_id"]]["prompt"]
        if model.startswith("gemma") and turns[0]["role"] == "system":
            turns = [{"role": "user", "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}, *turns[2:]]
            folded += 1
        assert row["prompt_ids"] == rendered(tokenizer, turns, add_generation_prompt=True)
        assert row["prompt_ids"].count(tokenizer.bos_token_id) == 1
        assert row["prompt_ids"][0] == tokenizer.bos_token_id
    assert folded == (model.startswith("gemma") and dataset == "skywork")


def test_reward_model_scores_on_rewardbench_are_those_of_plain_transformers(results: Path) -> None:
    """Each response by itself, whole and padded on either side; the score at the last token of `<end_of_turn>\\n`."""
    folder = results / "models" / "reward" / "skywork" / "head50" / "seed42"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16).eval()
    assert type(model).__name__ == "GemmaForSequenceClassification"
    scores = pd.read_parquet(results / "evaluations/reward/skywork/head50/seed42/rewardbench.parquet")
    scores = scores[scores["test"] == "full"].set_index("pair_id")
    assert len(scores) == sum(SUBSETS.values())
    compared = 0
    for row in pq.read_table(results / "data" / "rewardbench" / "pairs.parquet").to_pylist():
        for side in ("chosen", "rejected"):
            ids = rendered(tokenizer, [*row["prompt"], {"role": "assistant", "content": row[side]}])
            if len(ids) > LENGTH:
                continue
            compared += 1
            stored = scores.loc[row["pair_id"], side]
            for padding_side in ("left", "right"):
                pad = [tokenizer.pad_token_id] * 7
                padded = [*pad, *ids] if padding_side == "left" else [*ids, *pad]
                mask = torch.tensor([[0] * 7 + [1] * len(ids) if padding_side == "left" else [1] * len(ids) + [0] * 7])
                with torch.no_grad():
                    hidden = model.model(torch.tensor([padded]), attention_mask=mask).last_hidden_state
                    score = model.score(hidden)[0, mask[0].nonzero().max(), 0].item()
                assert score == pytest.approx(stored, abs=0.06)  # bfloat16
    assert compared > 10
    assert scores["chosen"].std() > 0.2


def test_a_reward_models_head_is_saved_and_its_tied_embedding_is_not_doubled(results: Path) -> None:
    folder = results / "models" / "reward" / "skywork" / "full" / "seed42"
    weights = load_file(folder / "model.safetensors")
    assert weights["score.weight"].shape == (1, 32)
    assert "lm_head.weight" not in weights
    one, other = (AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16) for _ in range(2))
    assert torch.equal(one.score.weight, other.score.weight)
    assert torch.equal(one.score.weight, weights["score.weight"].bfloat16())
    base = load_file(results / "models" / "base" / "gemma_2b_it" / "model.safetensors")
    key = "model.embed_tokens.weight"
    assert weights[key].shape == base[key].shape
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    recipe = record["params"]["recipe"]
    assert (recipe["learning_rate"], recipe["weight_decay"], recipe["weights"]) == (1e-5, 1e-3, "bfloat16")
    assert record["steps"] == -(-record["pairs"] // 16)


def test_policies_are_whole_llamas_that_started_from_their_reference(results: Path) -> None:
    for cut in ("full", "head50"):
        folder = results / "models" / "dpo" / "skywork" / cut / "seed42"
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        weights = load_file(folder / "model.safetensors")
        assert not model.config.tie_word_embeddings
        assert not torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
        record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        assert record["first_loss"] == pytest.approx(np.log(2), abs=2e-2)
        assert record["references_read"] > record["references_scored"]


def test_one_pass_log_probabilities_are_those_of_plain_transformers(results: Path) -> None:
    """Llama closes with one token, whose log-probability after the whole response is read in the same pass."""
    model = AutoModelForCausalLM.from_pretrained(
        results / "models/base/llama31_8b_instruct", dtype=torch.bfloat16
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(results / "models/base/llama31_8b_instruct")
    pairs = {row["pair_id"]: row for row in pq.read_table(results / "data/skywork/pairs.parquet").to_pylist()}
    rows = pq.read_table(results / "logprobs/base/llama31_8b_instruct/skywork.parquet").to_pylist()
    compared = 0
    for row in rows[:20]:
        pair = pairs[row["pair_id"]]
        ids = rendered(tokenizer, [*pair["prompt"], {"role": "assistant", "content": pair["chosen"]}])
        if len(ids) > LENGTH:
            continue
        compared += 1
        with torch.no_grad():
            logps = model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
        plain = logps[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].numpy()
        response = len(row["chosen_logps"])
        assert ids[-1] == tokenizer.eos_token_id
        np.testing.assert_allclose(row["chosen_logps"], plain[-response - 1 : -1], atol=0.15)
        assert row["chosen_closing"][row["chosen_closing_at"].index(response)] == pytest.approx(plain[-1], abs=0.15)
    assert compared > 10


def test_two_models_decode_from_the_same_prompts(results: Path) -> None:
    """The trained policy and its reference; the ends of the mixture are the models, as transformers decodes them."""
    folders = results / "models/dpo/skywork/full/seed42", results / "models/base/llama31_8b_instruct"
    trained, base = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for folder in folders)
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    pairs = pq.read_table(results / "data/skywork/pairs.parquet").to_pylist()[:3]
    prompts = [render_prompt(tokenizer, row["prompt"], "auto") for row in pairs]
    made = generate(
        trained,
        base,
        prompts,
        [reference(), mixing(1.0), length_control(4), policy()],
        max_new_tokens=24,
        end_ids=[tokenizer.eos_token_id],
        seed=1,
        greedy=True,
    )
    for number, prompt in enumerate(prompts):
        by_reference, mixed, controlled, by_policy = (list(m.tokens) for m in made[4 * number : 4 * number + 4])
        assert mixed == by_policy
        assert controlled[:4] == by_policy[:4]
        for model, tokens in ((base, by_reference), (trained, by_policy)):
            expected = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False,
                max_new_tokens=24,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.eos_token_id,
            )[0, len(prompt) :].tolist()
            assert tokens == expected


def test_table_1_and_figure_2_are_drawn(results: Path) -> None:
    table = pd.read_csv(results / "tables/table1.csv")
    assert set(table["name"]) == {"full", "head50"}
    assert table["value"].between(0, 1).sum() >= 4
    curve = pd.read_csv(results / "figures/figure2.csv")
    assert curve["accuracy"].between(0, 1).all()
    assert (results / "figures/figure2.png").stat().st_size > 10_000
