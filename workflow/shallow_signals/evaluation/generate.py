"""A model's outputs for a set of instructions, in AlpacaEval's format."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from shallow_signals.data.pairs import content_id
from shallow_signals.decoding.records import as_texts
from shallow_signals.evaluation.alpaca_files import write_outputs
from shallow_signals.files import read_parquet
from shallow_signals.models.load import load_causal_lm, load_tokenizer, pick_compute_dtype, pick_device
from shallow_signals.models.templates import Bos, end_ids, read_template, render_prompts

Engine = Literal["transformers", "vllm"]


def generate_outputs(
    model: Path,
    instructions: Path,
    out: Path,
    state: Path,
    *,
    generator: str,
    sample: int,
    max_new_tokens: int,
    greedy: bool,
    seed: int,
    engine: Engine,
    batch: int,
    bos: Bos,
    compute: Literal["auto", "float32", "bfloat16"],
    gpus: int = 1,
) -> dict[str, Any]:
    """Answer every instruction (schema `data.instructions.INSTRUCTIONS`) with the checkpoint `model`; write `out`.

    A prompt is the model's chat template with the generation prompt and no system turn but the instruction's own; a
    response ends where its turn does (`end_ids`) or at `max_new_tokens`. The text is what the tokens say, without
    special ones. Responses depend on `seed`, the instruction and `sample`. With the engine `transformers`, which keeps
    finished batches in `state`, a killed run carries on and ends with the same outputs. Returns facts for a sidecar.
    """
    started = time.monotonic()
    table = read_parquet(instructions, ["instruction_id", "prompt", "instruction"])
    ids = table["instruction_id"].to_pylist()
    tokenizer = load_tokenizer(model)
    template = read_template(tokenizer, bos)
    prompts = render_prompts(tokenizer, template, table["prompt"].to_pylist())
    ends = end_ids(model, tokenizer, template)
    dtype = pick_compute_dtype(compute)
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "end_ids": ends, "seed": seed, "greedy": greedy}
    versions = {}
    if engine == "vllm":
        from shallow_signals.decoding import vllm_engine

        named: Any = str(dtype).removeprefix("torch.")
        made = vllm_engine.generate(model, prompts, ids, sample=sample, dtype=named, gpus=gpus, **settings)
        versions = {"vllm": vllm_engine.version()}
    else:
        from shallow_signals.decoding import sampler, strategies

        loaded = load_causal_lm(model, dtype, device=pick_device())
        made = sampler.generate(
            loaded,
            loaded,  # a policy alone: no reference is run
            prompts,
            [strategies.policy()],
            first_sample=sample,
            batch_size=batch,
            kl=False,
            prompt_ids=ids,
            state=state,
            progress=True,
            **settings,
        )
    answers = as_texts(tokenizer, made)
    records = [
        {"instruction": instruction, "output": answer, "generator": generator}
        for instruction, answer in zip(table["instruction"].to_pylist(), answers, strict=True)
    ]
    write_outputs(out, records)
    return {
        "generator": generator,
        "seed": seed,
        "sample": sample,
        "engine": engine,
        **versions,
        "responses": len(made),
        "cut_off": sum(not generation.ended for generation in made),  # at max_new_tokens
        "empty": sum(not answer for answer in answers),
        "tokens": sum(len(generation.tokens) for generation in made),
        "end_ids": list(ends),
        "prompts": content_id(prompts),  # of their token ids: the same for every engine
        "device": pick_device().type,
        "compute": str(dtype).removeprefix("torch."),
        "seconds": round(time.monotonic() - started, 1),
    }
