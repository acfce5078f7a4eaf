"""Two tiny models of one vocabulary that disagree, and decoding with them the plain way: no cache, nothing shared."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import checkpoints
from shallow_signals.decoding import Strategy, generate, kl_threshold, length_control, mixing, sampling_logps
from shallow_signals.decoding.streams import draw_tokens, exponentials, seeds, stream_key


def two_models(name: str, folder: Path, spread: float = 0.05) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A reference made by `checkpoints.<name>`, and as the policy the same weights with noise on every matrix."""
    make: Callable[[Path], Path] = getattr(checkpoints, name)
    path = make(folder / name)
    policy, reference = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for _ in range(2))
    noise = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.dim() == 2:
                weight += spread * torch.randn(weight.shape, generator=noise)
    return policy, reference


def adapter(reference: PreTrainedModel) -> torch.nn.Module:
    """A random LoRA adapter on `reference`, which becomes its base."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(11)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(reference, settings).eval()  # type: ignore[no-any-return]


def some_prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Prompts of 2 to 20 random tokens."""
    random = np.random.default_rng(seed)
    return [[int(i) for i in random.integers(10, 300, random.integers(2, 21))] for _ in range(count)]


@torch.no_grad()
def next_logps(model: torch.nn.Module, ids: Sequence[int]) -> torch.Tensor:
    """log p(next token | ids), float32 [1, vocabulary], from one ordinary forward pass."""
    return model(torch.tensor([list(ids)])).logits[:, -1].float().log_softmax(-1)  # type: ignore[no-any-return]


def plainly(
    policy: torch.nn.Module,
    reference: torch.nn.Module,
    prompt: Sequence[int],
    strategy: Strategy,
    *,
    prompt_id: str,
    seed: int,
    tokens: int,
    sample: int = 0,
    end_ids: Sequence[int] = (),
) -> list[int]:
    """One response: both models read the whole text again for every token."""
    made: list[int] = []
    for step in range(1, tokens + 1):
        ids = [*prompt, *made]
        logps = sampling_logps([strategy], next_logps(policy, ids), next_logps(reference, ids), step)
        start = seeds([stream_key(seed, prompt_id, sample)], [step])[:, 0]
        made.append(int(draw_tokens(logps.exp(), exponentials(start, logps.shape[1]))[0]))
        if made[-1] in end_ids:
            break
    return made


@contextmanager
def reading(model: torch.nn.Module) -> Iterator[list[tuple[int, int]]]:
    """Note the shape (rows, tokens) of everything that `model` reads inside the block."""
    shapes: list[tuple[int, int]] = []

    def note(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        rows, tokens = inputs[0].shape
        shapes.append((rows, tokens))

    handle = model.get_input_embeddings().register_forward_pre_hook(note)  # type: ignore[operator]
    try:
        yield shapes
    finally:
        handle.remove()


def long_run(folder: Path, state: Path) -> None:
    """Twelve batches in bfloat16 on one thread; its rounding would show any change of a batch's composition."""
    models = [model.to(torch.bfloat16) for model in two_models("llama3", folder)]
    sweep = [mixing(0.5), length_control(4), kl_threshold(0.3)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        generate(
            models[0],
            models[1],
            some_prompts(24),
            sweep,
            max_new_tokens=40,
            end_ids=range(10, 20),
            seed=3,
            batch_size=6,
            state=state,
        )
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    long_run(Path(sys.argv[1]), Path(sys.argv[2]))
