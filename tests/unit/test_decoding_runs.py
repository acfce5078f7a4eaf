"""Decoding runs on files: prompts, shared weights, given texts, and the script killed and run again."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import entropy

import checkpoints
import dpo_setup
import realdata
from shallow_signals.data.instructions import INSTRUCTIONS
from shallow_signals.decoding import generate, policy
from shallow_signals.decoding.records import from_table
from shallow_signals.decoding.runs import RESPONSES, TEXTS, decode, load_models, read_texts
from shallow_signals.files import InputError, read_parquet, write_json, write_parquet
from shallow_signals.models.load import load_causal_lm, load_tokenizer
from shallow_signals.provenance import content_hash
from two_models import adapter, next_logps

SCRIPTS = Path(__file__).resolve().parents[2] / "workflow" / "scripts"
CONTROLS = {
    "mixing": [0.5],
    "length_control": [2],
    "kl_threshold": [0.1],
    "fallback": "reference",
    "monte_carlo": None,
}
RUN: dict[str, Any] = {
    "controls": CONTROLS,
    "samples": 1,
    "max_new_tokens": 10,
    "seed": 3,
    "batch": 16,
    "bos": "auto",
    "compute": "float32",
}
TEXT_RUN: dict[str, Any] = {key: RUN[key] for key in ("seed", "batch", "compute", "max_new_tokens")} | {
    "rows": 6,
    "prefix": 2,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.chatml(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy as training writes it: merged weights, its adapter, and the record of what it was trained on."""
    folder = tmp_path_factory.mktemp("tuned") / "policy"
    model: Any = adapter(load_causal_lm(base))
    model.save_pretrained(folder / "adapter")
    model.merge_and_unload().save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)
    write_json(folder / "training.json", {"inputs": {"base": content_hash(base)}})
    return folder


@pytest.fixture
def plain(tuned: Path, tmp_path: Path) -> Path:
    """The same policy as one without an adapter."""
    folder = tmp_path / "plain"
    load_causal_lm(tuned).save_pretrained(folder)
    load_tokenizer(tuned).save_pretrained(folder)
    return folder


def instructions(folder: Path, count: int) -> Path:
    texts = [f"What is {i} and {i}?" for i in range(count)]
    rows = [
        {"instruction_id": f"i{i}", "prompt": [{"role": "user", "content": text}], "instruction": text}
        for i, text in enumerate(texts)
    ]
    path = folder / "instructions.parquet"
    write_parquet(path, pa.Table.from_pylist(rows, schema=INSTRUCTIONS))
    return path


def storages(model: torch.nn.Module) -> dict[int, int]:
    """Memory of a model's weights: address and bytes."""
    return {w.untyped_storage().data_ptr(): w.untyped_storage().nbytes() for w in model.parameters()}


def test_an_adapter_and_its_base_are_one_copy_in_memory(tuned: Path, plain: Path, base: Path) -> None:
    whole = sum(storages(load_causal_lm(base)).values())
    shared = load_models(tuned, base, "float32")
    assert shared.reference is None
    assert whole < sum(storages(shared.policy).values()) < 1.5 * whole  # the base once, and a small adapter
    inner: Any = shared.policy
    weight = inner.get_base_model().get_output_embeddings().weight
    assert weight.untyped_storage().data_ptr() in storages(shared.policy)
    apart = load_models(plain, base, "float32")
    assert apart.reference is not None
    assert not storages(apart.policy).keys() & storages(apart.reference).keys()


def test_the_shared_base_and_the_merged_copy_decode_alike(tuned: Path, plain: Path, base: Path, tmp_path: Path) -> None:
    asked = instructions(tmp_path, 6)
    facts = decode(tuned, base, asked, tmp_path / "a.parquet", tmp_path / ".a.parquet.state-x", **RUN)
    decode(plain, base, asked, tmp_path / "b.parquet", tmp_path / ".b.parquet.state-x", **RUN)
    assert facts["shared_weights"] and facts["responses"] == 30
    one, two = (read_parquet(tmp_path / f"{name}.parquet") for name in "ab")
    assert one.schema.equals(RESPONSES)
    assert one["tokens"].to_pylist() == two["tokens"].to_pylist()
    for name in ("kl_policy_reference", "kl_sampling_reference", "log_ratio"):
        flat = [np.concatenate(table[name].to_pylist()) for table in (one, two)]
        np.testing.assert_allclose(*flat, atol=2e-4)
    assert not list(tmp_path.glob(".*state*"))


def test_an_adapter_on_another_base_is_read_merged(tuned: Path, tmp_path: Path) -> None:
    other = checkpoints.chatml(tmp_path / "other")
    model = load_causal_lm(other)
    with torch.no_grad():
        model.model.norm.weight += 0.5
    model.save_pretrained(other)
    loaded = load_models(tuned, other, "float32")
    assert loaded.reference is not None
    expected = next_logps(load_causal_lm(tuned), [5, 6, 7])
    torch.testing.assert_close(next_logps(loaded.policy, [5, 6, 7]), expected)


def test_different_vocabularies_are_refused_before_anything_is_read(tuned: Path, tmp_path: Path) -> None:
    other = checkpoints.llama3(tmp_path / "other")
    with pytest.raises(InputError, match="differ in vocabulary"):
        load_models(tuned, other, "float32")


def test_prompts_hold_the_generation_prompt_and_texts_are_the_tokens(tuned: Path, base: Path, tmp_path: Path) -> None:
    asked = instructions(tmp_path, 4)
    decode(tuned, base, asked, tmp_path / "a.parquet", tmp_path / "state", **{**RUN, "controls": None})
    tokenizer = load_tokenizer(base)
    rows = read_parquet(asked).to_pylist()
    prompts = [
        tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False) for row in rows
    ]
    assert tokenizer.decode(prompts[0]).endswith("<|im_start|>assistant\n")
    models = load_models(tuned, base, "float32")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in models.ends
    expected = generate(
        models.policy, None, prompts, [policy()], max_new_tokens=10, end_ids=models.ends, seed=3, batch_size=16,
        prompt_ids=[row["instruction_id"] for row in rows],
    )  # fmt: skip
    table = read_parquet(tmp_path / "a.parquet")
    found = from_table(table.drop_columns("text"))
    assert [g.tokens.tolist() for g in found] == [g.tokens.tolist() for g in expected]
    assert table["text"].to_pylist() == [tokenizer.decode(g.response, skip_special_tokens=True) for g in expected]


def held_out(base: Path, folder: Path, count: int = 12) -> Path:
    rows = [
        realdata.pair_row(pair["prompt"], pair["chosen"], pair["rejected"], split="train" if i % 3 == 0 else "test")
        for i, pair in enumerate(dpo_setup.conversations(count))
    ]
    folder.mkdir(exist_ok=True)
    return dpo_setup.tokens_file(base, rows, folder)


def test_kl_on_given_texts_equals_reading_them_plainly(tuned: Path, base: Path, tmp_path: Path) -> None:
    tokens = held_out(base, tmp_path / "data")
    facts = read_texts(tuned, base, tokens, tmp_path / "texts.parquet", tmp_path / "state", **TEXT_RUN)
    table = read_parquet(tmp_path / "texts.parquet")
    assert table.schema.equals(TEXTS)
    rows = table.to_pylist()
    pairs = {row["prompt_id"]: row for row in read_parquet(tokens).to_pylist()}
    own, other = load_causal_lm(tuned), load_causal_lm(base)
    end = load_tokenizer(base).convert_tokens_to_ids("<|im_end|>")
    counts = {name: sum(row["text"] == name for row in rows) for name in ("chosen", "rejected", "continued")}
    assert counts == {"chosen": 6, "rejected": 6, "continued": facts["continued"]}
    assert facts["continued"] + facts["too_short_to_continue"] == 6
    for row in rows:
        pair = pairs[row["prompt_id"]]
        assert pair["split"] == "test"
        if row["text"] == "continued":
            assert row["start"] == 2 and 1 <= len(row["kl"]) <= 8
            continue
        response = [*pair[f"{row['text']}_ids"], end][:10]
        assert len(row["kl"]) == len(response)
        for t in (0, len(response) // 2, len(response) - 1):
            p, q = (next_logps(m, [*pair["prompt_ids"], *response[:t]])[0].double().exp() for m in (own, other))
            assert row["kl"][t] == pytest.approx(entropy(p.numpy(), q.numpy()), abs=2e-5)


def test_a_continuation_starts_where_the_chosen_response_was_left(tuned: Path, base: Path, tmp_path: Path) -> None:
    tokens = held_out(base, tmp_path / "data")
    read_texts(tuned, base, tokens, tmp_path / "texts.parquet", tmp_path / "state", **TEXT_RUN)
    row = next(r for r in read_parquet(tmp_path / "texts.parquet").to_pylist() if r["text"] == "continued")
    pair = next(r for r in read_parquet(tokens).to_pylist() if r["prompt_id"] == row["prompt_id"])
    context = [*pair["prompt_ids"], *pair["chosen_ids"][:2]]
    p, q = (next_logps(load_causal_lm(m), context)[0].double().exp().numpy() for m in (tuned, base))
    assert row["kl"][0] == pytest.approx(entropy(p, q), abs=2e-5)


def test_what_has_no_held_out_pair_is_named(tuned: Path, base: Path, tmp_path: Path) -> None:
    rows = [
        realdata.pair_row(p["prompt"], p["chosen"], p["rejected"], split="train") for p in dpo_setup.conversations(4)
    ]
    (tmp_path / "data").mkdir()
    tokens = dpo_setup.tokens_file(base, rows, tmp_path / "data")
    with pytest.raises(InputError, match=r"tokens\.parquet: holds no held-out pairs"):
        read_texts(tuned, base, tokens, tmp_path / "t.parquet", tmp_path / "state", **TEXT_RUN)
    long = {**TEXT_RUN, "max_new_tokens": 10**6}
    with pytest.raises(InputError, match="have room for"):
        read_texts(tuned, base, held_out(base, tmp_path / "other"), tmp_path / "t.parquet", tmp_path / "state", **long)


class Files(dict[str, str]):
    """Named files, by key or attribute, as the workflow engine hands them over."""

    __getattr__ = dict.__getitem__


def run_script(folder: Path, policy: str, reference: str, asked: str) -> None:
    """`decode.py` as the rule runs it, with a batch small enough to be killed between two."""
    folder.mkdir(exist_ok=True)
    engine = SimpleNamespace(
        rule="decode",
        wildcards=["one"],
        threads=1,
        resources={},
        log=[str(folder / "log")],
        input=Files(policy=policy, reference=reference, instructions=asked),
        output=Files(responses=str(folder / "responses.parquet"), facts=str(folder / "responses.meta.json")),
        params=SimpleNamespace(run={**RUN, "max_new_tokens": 60, "batch": 8, "compute": "bfloat16"}),
    )
    sys.path.insert(0, str(SCRIPTS))
    runpy.run_path(str(SCRIPTS / "decode.py"), init_globals={"snakemake": engine})


def test_the_script_killed_and_run_again_gives_the_same_bytes(tuned: Path, base: Path, tmp_path: Path) -> None:
    asked = instructions(tmp_path, 40)
    arguments = [str(tuned), str(base), str(asked)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    broken = tmp_path / "broken"
    process = subprocess.Popen([sys.executable, __file__, str(broken), *arguments], env=environment)

    def shards() -> list[Path]:
        return list(broken.glob(".responses.parquet.state-*/shard-*.parquet"))

    while len(shards()) < 3 and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 3 <= len(shards()) < 25 and not (broken / "responses.parquet").exists()
    run_script(broken, *arguments)
    run_script(tmp_path / "whole", *arguments)
    whole = tmp_path / "whole" / "responses.parquet"
    assert (broken / "responses.parquet").read_bytes() == whole.read_bytes()
    assert read_parquet(whole).num_rows == 40 * 5
    assert not shards()
    log = (broken / "log").read_text()
    assert "tokens/s" in log and "200/200" in log


if __name__ == "__main__":
    run_script(Path(sys.argv[1]), *sys.argv[2:])
