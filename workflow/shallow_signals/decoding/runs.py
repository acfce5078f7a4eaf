"""Decoding runs on files: a policy and its reference on a set of instructions, and on the responses of a data set."""

from __future__ import annotations

import heapq
import json
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
from shallow_signals.decoding.pair import pair_models
from shallow_signals.decoding.records import GENERATIONS, as_texts, to_table
from shallow_signals.decoding.sampler import generate
from shallow_signals.decoding.strategies import Fallback, Strategy
from shallow_signals.decoding.texts import text_kl
from shallow_signals.files import InputError, read_parquet, write_parquet
from shallow_signals.models.load import load_causal_lm, load_tokenizer, pick_compute_dtype, pick_device
from shallow_signals.models.templates import Bos, end_ids, read_template, render_prompts
from shallow_signals.models.tree import TOKEN_BUDGET
from shallow_signals.provenance import content_hash
from shallow_signals.states import forget_states

Compute = Literal["auto", "float32", "bfloat16"]
ADAPTER = "adapter"  # folder of a policy's adapter, beside its merged weights
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
    max_positions: int | None  # that both can read


def load_models(policy: Path, reference: Path, compute: Compute) -> Models:
    """Load two checkpoints; different vocabularies are an `InputError`.

    A policy that was trained as an adapter on this very reference (its training.json tells by content) is loaded as
    one: its weights and the reference's are the same memory.
    """
    device, dtype = pick_device(), pick_compute_dtype(compute)
    tokenizers = load_tokenizer(policy), load_tokenizer(reference)
    ends = end_ids(policy, tokenizers[0], read_template(tokenizers[0], "auto"))
    base: nn.Module = load_causal_lm(reference, dtype, device=device)
    shared = _is_adapter_on(policy, reference)
    tuned: nn.Module
    if shared:
        from peft import PeftModel

        tuned = PeftModel.from_pretrained(base, str(policy / ADAPTER)).to(device, dtype).eval()
    else:
        tuned = load_causal_lm(policy, dtype, device=device)
    other = None if shared else base
    positions = pair_models(tuned, other, tokenizers).max_positions
    return Models(tuned, other, tokenizers, ends, str(dtype).removeprefix("torch."), positions)


def _is_adapter_on(policy: Path, reference: Path) -> bool:
    if not (policy / ADAPTER).is_dir():
        return False
    try:
        record = json.loads((policy / "training.json").read_text(encoding="utf-8"))
        return bool(record["inputs"]["base"] == content_hash(reference))
    except (OSError, ValueError, KeyError):
        return False  # where it came from isn't told: its merged weights are as good


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
    tokenizer = models.tokenizers[0]
    table = read_parquet(instructions, ["instruction_id", "prompt"])
    made = generate(
        models.policy,
        models.reference,
        render_prompts(tokenizer, read_template(tokenizer, bos), table["prompt"].to_pylist()),
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
    write_parquet(out, to_table(made).append_column("text", pa.array(as_texts(tokenizer, made), pa.string())))
    forget_states(state)
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

    Of `rows` held-out pairs of a tokens file, chosen by hash: the chosen and the rejected response with the end of its
    turn, and the policy's continuation of the first `prefix` tokens of the chosen one. All stop after `max_new_tokens`
    tokens of the response, as the policy's own samples do. Writes the schema `TEXTS`; the facts count pairs left out
    because the models have no room for prompt and response. `InputError` where no held-out pair is left.
    """
    models = load_models(policy, reference, compute)
    table = read_parquet(tokens, ["pair_id", "split", "prompt_id", "prompt_ids", "chosen_ids", "rejected_ids"])
    held_out = table.filter(pc.equal(table["split"], "test"))
    lengths = pc.list_value_length(held_out["prompt_ids"]).to_numpy()
    fits = lengths + max_new_tokens <= (models.max_positions or float("inf"))
    pairs = held_out.filter(pa.array(fits)).to_pylist()
    if not pairs:
        raise InputError(
            f"{tokens}: holds no held-out pairs that the models have room for ({held_out.num_rows} held-out pairs); "
            "give the data set a test split or set `holdout`"
        )
    chosen = heapq.nsmallest(rows, pairs, key=lambda pair: uniform_hash("texts", pair["pair_id"]))
    sides = [
        [[*pair[side], models.ends[0]][:max_new_tokens] for side in ("chosen_ids", "rejected_ids")] for pair in chosen
    ]
    prompts = [pair["prompt_ids"] for pair in chosen]
    budget = TOKEN_BUDGET[pick_device().type]
    read = text_kl(models.policy, models.reference, list(zip(prompts, sides, strict=True)), token_budget=budget)
    found: list[dict[str, Any]] = []
    for pair, responses in zip(chosen, read, strict=True):
        for name, response in zip(("chosen", "rejected"), responses, strict=True):
            found.append({"text": name, "prompt_id": pair["prompt_id"], "start": 0, "kl": response.kl})
    begun, kept = continuations(prompts, [pair["chosen_ids"] for pair in chosen], prefix)
    made = generate(
        models.policy,
        models.reference,
        begun,
        [strategies.policy()],
        max_new_tokens=max_new_tokens - prefix,
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
    forget_states(state)
    return {
        "pairs": len(chosen),
        "left_out_without_room": int((~fits).sum()),
        "continued": len(kept),
        "too_short_to_continue": len(chosen) - len(kept),
        "shared_weights": models.reference is None,
    }
