"""Decoding runs on files: a policy and its reference on a set of instructions, and on the responses of a data set."""

from __future__ import annotations

import heapq
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from torch import nn

from shallow_signals.data.pairs import uniform_hash
from shallow_signals.decoding import strategies
from shallow_signals.decoding.kl import continuations
from shallow_signals.decoding.records import GENERATIONS, Generation, to_table
from shallow_signals.decoding.sampler import generate
from shallow_signals.decoding.strategies import Fallback, Strategy
from shallow_signals.decoding.texts import Text, text_kl
from shallow_signals.files import InputError, read_parquet, write_parquet
from shallow_signals.models.load import load_causal_lm, load_tokenizer, pick_compute_dtype, pick_device
from shallow_signals.models.templates import Bos, end_ids, prompt_ids, prompt_text, read_template

Compute = Literal["auto", "float32", "bfloat16"]
TOKEN_BUDGET = {"cuda": 32768, "cpu": 4096}  # of a batch of given texts, padding included
RESPONSES = GENERATIONS.append(pa.field("text", pa.string()))
TEXTS = pa.schema(
    [
        ("text", pa.string()),  # chosen, rejected or continued
        ("prompt_id", pa.string()),
        ("start", pa.int32()),  # tokens of the response that were given
        ("kl", pa.list_(pa.float32())),  # exact KL(policy || reference) before each token
    ]
)


@dataclass(frozen=True)
class Models:
    """A policy and its reference, ready to decode; `reference` is None where the policy is an adapter on it."""

    policy: nn.Module
    reference: nn.Module | None
    tokenizers: tuple[Any, Any]
    ends: Sequence[int]
    compute: str


def load_models(policy: Path, reference: Path, compute: Compute) -> Models:
    """Load two checkpoints. A policy that was trained as an adapter on the reference shares its weights."""
    device, dtype = pick_device(), pick_compute_dtype(compute)
    tokenizers = load_tokenizer(policy), load_tokenizer(reference)
    ends = end_ids(policy, tokenizers[0], read_template(tokenizers[0], "auto"))
    named = str(dtype).removeprefix("torch.")
    base = load_causal_lm(reference, dtype, device=device)
    if (policy / "adapter").is_dir():
        from peft import PeftModel

        tuned = PeftModel.from_pretrained(base, policy / "adapter").to(device, dtype).eval()
        return Models(tuned, None, tokenizers, ends, named)
    return Models(load_causal_lm(policy, dtype, device=device), base, tokenizers, ends, named)


def sweep(
    *,
    mixing: Sequence[float],
    length_control: Sequence[int],
    kl_threshold: Sequence[float],
    fallback: Fallback,
    monte_carlo: int | None,
) -> list[Strategy]:
    """Both models, and every strategy at every one of its parameters, each once."""
    made = [strategies.reference(), strategies.policy()]
    made += [strategies.mixing(a) for a in mixing]
    made += [strategies.length_control(t) for t in length_control]
    made += [strategies.kl_threshold(b, fallback=fallback, monte_carlo=monte_carlo) for b in kl_threshold]
    return list(dict.fromkeys(made))


def decode(
    policy: Path,
    reference: Path,
    instructions: Path,
    out: Path,
    state: Path,
    *,
    controls: Mapping[str, Any] | None,
    samples: int,
    max_new_tokens: int,
    seed: int,
    batch: int,
    bos: Bos,
    compute: Compute,
) -> dict[str, Any]:
    """Answer every instruction with every strategy and write the schema `RESPONSES`; facts for a sidecar.

    `controls` are the keywords of `sweep`; without them the policy alone answers.
    Prompts are the policy's chat template with the generation prompt; a response ends with its turn or at
    `max_new_tokens`. Finished batches stand in `state`: a killed run goes on and writes the same bytes.
    """
    started = time.monotonic()
    models = load_models(policy, reference, compute)
    table = read_parquet(instructions, ["instruction_id", "prompt"])
    made = generate(
        models.policy,
        models.reference,
        _prompts(models.tokenizers[0], bos, table["prompt"].to_pylist()),
        [strategies.policy()] if controls is None else sweep(**controls),
        max_new_tokens=max_new_tokens,
        end_ids=models.ends,
        seed=seed,
        samples=samples,
        batch_size=batch,
        prompt_ids=table["instruction_id"].to_pylist(),
        tokenizers=models.tokenizers,
        state=state,
        progress=True,
    )
    write_parquet(out, to_table(made).append_column("text", pa.array(_texts(models.tokenizers[0], made), pa.string())))
    return {
        "responses": len(made),
        "cut_off": sum(not generation.ended for generation in made),
        "tokens": sum(len(generation.tokens) for generation in made),
        "compute": models.compute,
        "shared_weights": models.reference is None,
        "seconds": round(time.monotonic() - started, 1),
    }


def read_texts(
    policy: Path,
    reference: Path,
    tokens: Path,
    out: Path,
    state: Path,
    *,
    rows: int,
    prefix: int,
    max_new_tokens: int,
    seed: int,
    batch: int,
    compute: Compute,
) -> dict[str, Any]:
    """KL by position on responses that neither model wrote, and where the policy goes on from their beginnings.

    Of `rows` held-out pairs of a tokens file, chosen by hash: the chosen and the rejected response, and the policy's
    continuation of the first `prefix` tokens of the chosen one. Writes the schema `TEXTS`.
    """
    models = load_models(policy, reference, compute)
    table = read_parquet(tokens, ["pair_id", "split", "prompt_id", "prompt_ids", "chosen_ids", "rejected_ids"])
    pairs = table.filter(pc.equal(table["split"], "test")).to_pylist()
    if not pairs:
        raise InputError(f"{tokens}: holds no held-out pairs; give the data set a test split or set `holdout`")
    chosen = heapq.nsmallest(rows, pairs, key=lambda pair: uniform_hash("texts", pair["pair_id"]))
    texts: list[Text] = [(pair["prompt_ids"], [pair["chosen_ids"], pair["rejected_ids"]]) for pair in chosen]
    budget = TOKEN_BUDGET[pick_device().type]
    found: list[dict[str, Any]] = []
    for pair, read in zip(chosen, text_kl(models.policy, models.reference, texts, token_budget=budget), strict=True):
        for name, response in zip(("chosen", "rejected"), read, strict=True):
            found.append({"text": name, "prompt_id": pair["prompt_id"], "start": 0, "kl": response.kl})
    prompts, kept = continuations([t[0] for t in texts], [t[1][0] for t in texts], prefix)
    made = generate(
        models.policy,
        models.reference,
        prompts,
        [strategies.policy()],
        max_new_tokens=max_new_tokens,
        end_ids=models.ends,
        seed=seed,
        batch_size=batch,
        prompt_ids=[chosen[i]["pair_id"] for i in kept],
        state=state,
        progress=True,
    )
    for i, generation in zip(kept, made, strict=True):
        kl = generation.kl_policy_reference
        found.append({"text": "continued", "prompt_id": chosen[i]["prompt_id"], "start": prefix, "kl": kl})
    write_parquet(out, pa.Table.from_pylist(found, schema=TEXTS))
    return {"pairs": len(chosen), "continued": len(kept), "too_short": len(chosen) - len(kept)}


def _prompts(tokenizer: Any, bos: Bos, prompts: Sequence[Any]) -> list[list[int]]:
    template = read_template(tokenizer, bos)
    return prompt_ids(tokenizer, template, [prompt_text(tokenizer, template, prompt) for prompt in prompts])


def _texts(tokenizer: Any, generations: Sequence[Generation]) -> list[str]:
    ids = [generation.response.tolist() for generation in generations]
    texts: list[str] = tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return texts
