"""Outputs for a set of instructions: prompts, stop rules, text, determinism, and what a killed run loses (nothing)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from alpaca_eval.utils import load_or_convert_to_dataframe
from safetensors.torch import load_file, save_file

import checkpoints
from shallow_signals.data.instructions import INSTRUCTIONS
from shallow_signals.decoding import batch as decoding_batch
from shallow_signals.decoding import sampler
from shallow_signals.evaluation.alpaca_files import read_outputs
from shallow_signals.evaluation.generate import generate_outputs
from shallow_signals.evaluation.statistics import binomial_interval
from shallow_signals.files import InputError, write_parquet
from shallow_signals.models.load import load_causal_lm, load_tokenizer
from shallow_signals.models.templates import end_ids, read_template
from shallow_signals.states import forget_states

END = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>"}
SETTINGS: dict[str, Any] = {
    "generator": "tiny",
    "sample": 0,
    "max_new_tokens": 16,
    "greedy": False,
    "seed": 3,
    "engine": "transformers",
    "batch": 5,
    "bos": "auto",
    "compute": "float32",
}


def talkative(folder: Path, name: str) -> Path:
    """A random checkpoint that ends its turn after a few tokens."""
    base: Path = getattr(checkpoints, name)(folder)
    if name != "gemma":  # there the head is the embedding, too
        weights = load_file(base / "model.safetensors")
        end = load_tokenizer(base).convert_tokens_to_ids(END[name])
        weights["lm_head.weight"][end] *= 4
        save_file(weights, base / "model.safetensors", {"format": "pt"})
    return base


@pytest.fixture(scope="module", params=["chatml", "llama3", "gemma"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, talkative(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talkative(tmp_path_factory.mktemp("model"), "llama3")


def instructions(folder: Path, n: int = 12) -> Path:
    texts = [f"How do I bake bread number {i}?" + " Please." * (i % 4) for i in range(n)]
    rows = [
        {"instruction_id": f"i{i}", "prompt": [{"role": "user", "content": text}], "instruction": text}
        for i, text in enumerate(texts)
    ]
    path = folder / "instructions.parquet"
    write_parquet(path, pa.Table.from_pylist(rows, schema=INSTRUCTIONS))
    return path


def made(folder: Path, model: Path, n: int = 12, name: str = "out", **changes: Any) -> tuple[list[Any], dict[str, Any]]:
    out = folder / f"{name}.json"
    facts = generate_outputs(model, instructions(folder, n), out, folder / f".{name}.state-1", **SETTINGS | changes)
    return read_outputs(out), facts


def texts(records: Sequence[Any]) -> list[str]:
    return [record["output"] for record in records]


def plainly(model: Path, n: int, folder: Path, new: int) -> list[str]:
    """Each instruction by itself: the template's own rendering, and transformers' own greedy decoding."""
    tokenizer, loaded = load_tokenizer(model), load_causal_lm(model)
    ends = [tokenizer.convert_tokens_to_ids(END[name]) for name in END if END[name] in tokenizer.get_vocab()]
    answers = []
    for record in made(folder, model, n, "plain")[0]:
        turn = [{"role": "user", "content": record["instruction"]}]
        ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        whole = loaded.generate(ids, do_sample=False, max_new_tokens=new, eos_token_id=ends, pad_token_id=ends[0])
        answers.append(tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True))
    return answers


def test_greedy_outputs_are_those_of_transformers(family: tuple[str, Path], tmp_path: Path) -> None:
    name, model = family
    records, facts = made(tmp_path, model, 8, greedy=True)
    assert texts(records) == plainly(model, 8, tmp_path, 16)
    assert not any(END[name] in text for text in texts(records))
    assert facts["responses"] == 8 and facts["tokens"] <= 8 * 16


def test_a_turn_ends_and_its_end_is_no_text(llama: Path, tmp_path: Path) -> None:
    records, facts = made(tmp_path, llama, 12)
    assert 0 < facts["cut_off"] < 12  # some ended by themselves, some at the limit
    assert not any(END["llama3"] in text for text in texts(records))
    tokenizer = load_tokenizer(llama)
    ended = read_template(tokenizer, "auto").closing_ids[0]
    assert END["llama3"] in tokenizer.decode([40, ended])  # the control: it would be seen


def test_outputs_read_as_alpacaevals(llama: Path, tmp_path: Path) -> None:
    records, _ = made(tmp_path, llama, 3)
    frame = load_or_convert_to_dataframe(tmp_path / "out.json")
    assert list(frame.columns) == ["instruction", "output", "generator"]
    assert frame["output"].tolist() == texts(records) and set(frame["generator"]) == {"tiny"}


def test_prompts_carry_no_system_turn_and_the_generation_prompt(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    real = sampler.generate

    def spy(policy: Any, reference: Any, prompts: Any, *arguments: Any, **named: Any) -> Any:
        seen.extend(prompts)
        return real(policy, reference, prompts, *arguments, **named)

    monkeypatch.setattr(sampler, "generate", spy)
    records, _ = made(tmp_path, llama, 2)
    tokenizer = load_tokenizer(llama)
    for ids, record in zip(seen, records, strict=True):
        assert tokenizer.decode(ids) == (
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
            f"{record['instruction']}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        )


def test_what_ends_a_response(family: tuple[str, Path], tmp_path: Path) -> None:
    name, model = family
    tokenizer = load_tokenizer(model)
    turn = tokenizer.convert_tokens_to_ids(END[name])
    found = end_ids(model, tokenizer, read_template(tokenizer, "auto"))
    assert found[0] == turn and set(found) == {turn, tokenizer.eos_token_id}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert set(end_ids(tmp_path, tokenizer, read_template(tokenizer, "auto"))) == {turn, tokenizer.eos_token_id, 7, 8}


def test_same_seed_same_outputs_in_any_batch(llama: Path, tmp_path: Path) -> None:
    first, _ = made(tmp_path, llama)
    assert made(tmp_path, llama, name="again", batch=12)[0] == first
    assert texts(made(tmp_path, llama, name="seed", seed=4)[0]) != texts(first)
    assert texts(made(tmp_path, llama, name="sample", sample=1)[0]) != texts(first)


def test_killed_run_carries_on(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = made(tmp_path, llama, name="whole")
    done: list[int] = []
    real = decoding_batch.decode_batch

    def counted(pair: Any, jobs: Any, *arguments: Any) -> Any:
        if len(done) == 2 and not resumed:
            raise KeyboardInterrupt
        done.append(len(jobs))
        return real(pair, jobs, *arguments)

    resumed = False
    monkeypatch.setattr(sampler, "decode_batch", counted)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, llama)
    assert not (tmp_path / "out.json").exists() and done == [5, 5]
    resumed = True
    assert made(tmp_path, llama)[0] == whole
    assert done == [5, 5, 2]  # the finished batches were not made again
    (tmp_path / ".out.state-other").mkdir()
    forget_states(tmp_path / ".out.state-1")
    assert {path.name for path in tmp_path.glob(".out.*")} == set()
    assert (tmp_path / ".whole.state-1").is_dir()


def test_two_samples_of_one_model_are_even(llama: Path, tmp_path: Path) -> None:
    """What a base model's own row must show; one sample against itself is all ties."""
    one, two = (texts(made(tmp_path, llama, 150, f"s{s}", sample=s, max_new_tokens=6)[0]) for s in (0, 1))
    score = [sum(map(ord, text)) for text in one], [sum(map(ord, text)) for text in two]
    wins = [b > a for a, b in zip(*score, strict=True) if a != b]
    low, high = binomial_interval(sum(wins), len(wins), 0.999)
    assert len(wins) > 100 and low <= 0.5 <= high
    assert texts(made(tmp_path, llama, 150, "s0again", max_new_tokens=6)[0]) == one


class FakeLLM:
    """Records what it is asked; answers with the tokens of `answers`."""

    made: list[dict[str, Any]] = []
    asked: list[tuple[list[list[int]], list[Any]]] = []
    answers: list[list[int]] = []

    def __init__(self, **arguments: Any) -> None:
        self.made.append(arguments)

    def generate(self, prompts: list[dict[str, Any]], settings: list[Any]) -> list[Any]:
        self.asked.append(([prompt["prompt_token_ids"] for prompt in prompts], settings))
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=answer)]) for answer in self.answers]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[FakeLLM]:
    FakeLLM.made, FakeLLM.asked = [], []
    module = SimpleNamespace(LLM=FakeLLM, SamplingParams=SimpleNamespace, __version__="0.0")
    monkeypatch.setitem(sys.modules, "vllm", module)  # type: ignore[arg-type]
    return FakeLLM


def test_vllm_is_asked_the_same(llama: Path, tmp_path: Path, vllm: type[FakeLLM]) -> None:
    tokenizer = load_tokenizer(llama)
    end = tokenizer.convert_tokens_to_ids(END["llama3"])
    vllm.answers = [[*tokenizer("Mix the flour")["input_ids"][1:], end], tokenizer("Bake the")["input_ids"][1:], [end]]
    records, facts = made(tmp_path, llama, 3, engine="vllm", sample=1, gpus=2)
    assert texts(records) == ["Mix the flour", "Bake the", ""]
    assert (facts["cut_off"], facts["empty"], facts["vllm"]) == (1, 1, "0.0")
    _, ours = made(tmp_path, llama, 3, name="ours")
    assert facts["prompts"] == ours["prompts"] and facts["end_ids"] == ours["end_ids"]

    (engine,), ((prompts, settings),) = vllm.made, vllm.asked
    assert engine["model"] == str(llama) and engine["tensor_parallel_size"] == 2 and engine["dtype"] == "float32"
    assert engine["trust_remote_code"] is False and engine["generation_config"] == "vllm"
    assert engine["max_model_len"] == max(map(len, prompts)) + 16
    rendering = tokenizer.apply_chat_template(
        [{"role": "user", "content": records[0]["instruction"]}], add_generation_prompt=True
    )
    assert prompts[0] == rendering["input_ids"]
    for each in settings:
        assert (each.temperature, each.top_p, each.max_tokens) == (1.0, 1.0, 16)
        assert each.stop_token_ids == facts["end_ids"] and each.ignore_eos and not each.detokenize
    seeds = [each.seed for each in settings]
    assert len(set(seeds)) == 3 and all(0 <= seed < 2**31 for seed in seeds)

    made(tmp_path, llama, 3, "repeat", engine="vllm", sample=1)
    made(tmp_path, llama, 3, "other", engine="vllm", sample=0)
    made(tmp_path, llama, 3, "greedy", engine="vllm", greedy=True)
    again, other, greedy = (asked[1] for asked in vllm.asked[1:])
    assert [each.seed for each in again] == seeds and not {each.seed for each in other} & set(seeds)
    assert {each.temperature for each in greedy} == {0.0}


def test_vllm_that_is_not_installed(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match=r"vllm is not installed here; run with `--sdm conda`"):
        made(tmp_path, llama, 2, engine="vllm")


def test_first_sample_numbers_the_streams(llama: Path) -> None:
    model = load_causal_lm(llama)
    prompts = [[1, 40, 50], [1, 60, 70, 80]]
    settings: dict[str, Any] = {"max_new_tokens": 6, "end_ids": [], "seed": 1, "kl": False}
    both = sampler.generate(model, model, prompts, [sampler.Strategy("policy")], samples=2, **settings)
    second = sampler.generate(model, model, prompts, [sampler.Strategy("policy")], first_sample=1, **settings)
    assert [g.sample for g in second] == [1, 1]
    for ours, theirs in zip(second, [g for g in both if g.sample == 1], strict=True):
        assert np.array_equal(ours.tokens, theirs.tokens)
    first = [g.tokens.tolist() for g in both if g.sample == 0]
    assert [g.tokens.tolist() for g in second] != first
