"""vLLM as the engine of generation: for large models on GPUs, in an environment of its own (envs/vllm.yaml).

Prompts go in and responses come out as token ids, so that the chat template, what ends a response and how it becomes
text are those of the other engine. The random numbers are vLLM's own, seeded for each response.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shallow_signals.decoding.records import Generation
from shallow_signals.decoding.streams import stream_key
from shallow_signals.files import InputError

_SEEDS = (1 << 31) - 1  # vLLM takes a seed of any size; this fits all of its versions


def generate(
    model: Path,
    prompts: Sequence[Sequence[int]],
    prompt_ids: Sequence[str],
    *,
    sample: int,
    max_new_tokens: int,
    end_ids: Sequence[int],
    seed: int,
    greedy: bool,
    dtype: Literal["float32", "bfloat16"],
    gpus: int = 1,
) -> list[Generation]:
    """One response of the checkpoint `model` to every prompt, in their order, at temperature 1 or greedily.

    A response ends with the first token of `end_ids`, and with no other, or at `max_new_tokens`. The seed of each
    response follows from `seed`, its prompt's id and `sample`. Raises `InputError` where vLLM is not installed.
    """
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # nothing leaves the machine
    try:
        import vllm
    except ImportError as error:
        raise InputError(
            "engine: vllm is not installed here; run with `--sdm conda`, which makes envs/vllm.yaml, or set the "
            "comparison's `engine` to transformers"
        ) from error
    engine = vllm.LLM(
        model=str(model),
        tokenizer=str(model),
        trust_remote_code=False,
        load_format="safetensors",
        generation_config="vllm",  # not the checkpoint's temperature and top_p
        dtype=dtype,
        seed=seed,
        max_model_len=max(map(len, prompts)) + max_new_tokens,
        tensor_parallel_size=gpus,
    )
    settings = [
        vllm.SamplingParams(
            temperature=0.0 if greedy else 1.0,
            top_p=1.0,
            seed=stream_key(seed, name, sample) % _SEEDS,
            max_tokens=max_new_tokens,
            stop_token_ids=list(end_ids),
            ignore_eos=True,  # what ends a response stands in `end_ids`
            detokenize=False,
        )
        for name in prompt_ids
    ]
    answers = engine.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], settings)
    return [
        _generation(name, sample, answer.outputs[0].token_ids, set(end_ids))
        for name, answer in zip(prompt_ids, answers, strict=True)
    ]


def version() -> str:
    """The installed vLLM's."""
    import vllm

    return str(vllm.__version__)


def _generation(name: str, sample: int, tokens: Sequence[int], end_ids: set[int]) -> Generation:
    drawn: Any = np.array(tokens, dtype=np.int32)
    return Generation(name, sample, "policy", drawn, bool(len(drawn)) and int(drawn[-1]) in end_ids)
