"""Speed of decoding with two models: against a plain loop, against two `generate` runs, over sweeps and lengths.

    OMP_NUM_THREADS=1 python benchmarks/decoding.py                       # two tiny Llamas as in the demo, float32
    OMP_NUM_THREADS=1 python benchmarks/decoding.py --model FOLDER [--adapter FOLDER] --dtype bfloat16

Every ratio comes from one run on one machine. Prompts of 32-64 random tokens; nothing ends a response, so that all
sides make equally many tokens. With `--model` the policy is an adapter on it: the one given, or an untrained random
one. `--clock cpu` counts the process's own seconds, for a machine that others use, too.

**The plain loop** decodes as the paper's released scripts do. They are three scripts (mixing, length, threshold) around
one loop: one prompt at a time; both models called on the whole text for every token, with a mask of ones; no cache kept
from token to token, though each call builds one, as `use_cache` stays at its default; logits of all positions, of which
the last is used; softmax of both models over the vocabulary and the exact KL by p (log p - log q) with 1e-12 in the
logarithms (length and threshold), read off at every token; the mixture of logits with a = 0.5 and its softmax, computed
twice (threshold, where KL <= b); `multinomial`; the log-ratio of the drawn token (mixing and threshold); text and mask
grown by `cat`; a look at the drawn token for the end of the turn. What is timed is the threshold script's loop with b =
infinity: the mixture with a = 0.5 at every token and the KL of every token, just what ours is timed on. Spared are
progress bars, detokenizing and the reward model. The scripts hold two whole models in float32: here an adapter is
merged into a copy for the loop, and the dtype is that of our side; the softmax is float32 in any case.

**Two `generate` runs**: transformers' own, the same batch, once with each of the two whole models; sampling, no KL.

**Ours** is given the adapter on its base, measures KL, log-ratio and ranks at every token, and returns them.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from shallow_signals.decoding import Strategy, generate, kl_threshold, length_control, mixing
from shallow_signals.models.load import load_causal_lm, quiet

SWEEP = [
    *(mixing(a) for a in (0.5, 0.25, 0.75, 1.0, 1.5, 2.0)),
    *(length_control(t) for t in (8, 16, 32, 64, 128)),
    *(kl_threshold(b) for b in (0.01, 0.03, 0.1, 0.3, 1.0)),
]
FOUR = [SWEEP[0], SWEEP[4], SWEEP[8], SWEEP[13]]  # two mixtures, a length, a threshold


def main() -> None:
    """Measure and print Markdown tables."""
    options = arguments()
    timed = Timer(options.clock)
    policy, reference, *whole = models(options)
    base = whole[1]
    random = torch.Generator().manual_seed(0)
    sizes = torch.randint(32, 65, (options.batch,), generator=random).tolist()
    prompts = [torch.randint(3, int(base.config.vocab_size), (n,), generator=random).tolist() for n in sizes]

    def ours(strategies: Sequence[Strategy], tokens: int, batch: int) -> None:
        generate(policy, reference, prompts, strategies, max_new_tokens=tokens, end_ids=[], seed=1, batch_size=batch)

    print(f"`{' '.join(['decoding.py', *sys.argv[1:]])}`: {describe(base)}, {options.dtype};")
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}, {options.clock} clock,", end=" ")
    print(f"load of the machine {os.getloadavg()[0]:.1f} at the start;")
    print(f"batch {options.batch}, prompts of 32-64 tokens, {options.tokens} new tokens.\n")
    ours(SWEEP[:1], 8, options.batch)
    two_generates(*whole, prompts, 8)
    middle = sum(sizes) / len(sizes)
    few = sorted(prompts, key=lambda prompt: abs(len(prompt) - middle))[: options.loop_prompts]
    loop, pair, mine = [], [], []
    for _ in range(options.repeats):  # in turn, so that a slow moment of the machine meets all
        mine.append(timed(ours, SWEEP[:1], options.tokens, options.batch))
        pair.append(timed(two_generates, *whole, prompts, options.tokens))
        loop.append(timed(plain_loop, *whole, few, options.tokens))
    ours_speed = options.batch * options.tokens / min(mine)
    speeds = {
        f"plain loop, batch 1, no cache, KL on ({len(few)} prompts)": len(few) * options.tokens / min(loop),
        "two `generate` runs, no KL": options.batch * options.tokens / min(pair),
        "one batch, mix0.50, KL on": ours_speed,
    }
    print("| | tokens/s | ours is faster by | time of ours / its |\n|---|---:|---:|---:|")
    for name, speed in speeds.items():
        print(f"| {name} | {speed:,.1f} | {ours_speed / speed:.2f}x | {speed / ours_speed:.3f} |")
    if not options.no_sweeps:
        sweeps(ours, timed, options)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, help="folder of the reference; default: a tiny random Llama")
    parser.add_argument("--adapter", type=Path, help="folder of a peft adapter on --model: the policy")
    parser.add_argument("--hidden", type=int, default=64, help="width of the tiny Llama")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=512)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256, help="new tokens of every response")
    parser.add_argument(
        "--loop-prompts", type=int, default=2, help="prompts of middling length that the plain loop is timed on"
    )
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement; the fastest counts")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--no-sweeps", action="store_true", help="leave out the tables of sweeps and lengths")
    return parser.parse_args()


def sweeps(ours: Callable[..., None], timed: Timer, options: argparse.Namespace) -> None:
    """How the cost grows with the points of a sweep and with the tokens."""
    batch, tokens = options.batch, options.tokens
    print(
        f"\n| points of a sweep | s, {batch} responses side by side | by 1 point | s, all side by side | by 1 point |"
    )
    print("|---:|---:|---:|---:|---:|")
    first = min(timed(ours, SWEEP[:1], tokens, batch) for _ in range(options.repeats))
    for points in (SWEEP[:1], FOUR, SWEEP):
        narrow, wide = (
            min(timed(ours, points, tokens, width) for _ in range(options.repeats)) if len(points) > 1 else first
            for width in (batch, batch * len(points))
        )
        print(f"| {len(points)} | {narrow:.2f} | {narrow / first:.2f}x | {wide:.2f} | {wide / first:.2f}x |")
    print("\n| new tokens | s | ms a step |\n|---:|---:|---:|")
    for count in (tokens // 4, tokens // 2, tokens):
        spent = min(timed(ours, SWEEP[:1], count, batch) for _ in range(options.repeats))
        print(f"| {count} | {spent:.2f} | {1e3 * spent / count:.2f} |")


class Timer:
    """Seconds that one call takes, by the wall's clock or the process's own."""

    def __init__(self, clock: str) -> None:
        self.now = time.process_time if clock == "cpu" else time.perf_counter

    def __call__(self, job: Callable[..., Any], *arguments: Any) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = self.now()
        job(*arguments)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self.now() - start


def models(options: argparse.Namespace) -> tuple[Any, Any, Any, Any]:
    """Policy and reference (None where the policy is an adapter), and the two as whole models."""
    dtype = getattr(torch, options.dtype)
    if options.model is None:
        config = LlamaConfig(
            vocab_size=options.vocabulary,
            hidden_size=options.hidden,
            intermediate_size=2 * options.hidden,
            num_hidden_layers=options.layers,
            num_attention_heads=4,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            initializer_range=0.08,
        )
        torch.manual_seed(0)
        reference, policy = LlamaForCausalLM(config), LlamaForCausalLM(config)
        policy.load_state_dict(reference.state_dict())
        with torch.no_grad():
            for weight in policy.parameters():
                weight += 0.005 * torch.randn_like(weight)  # a KL of about 0.02 nats a token, as after a light DPO
        whole = policy.to(options.device, dtype).eval(), reference.to(options.device, dtype).eval()
        return *whole, *whole
    from peft import LoraConfig, PeftModel, get_peft_model

    plain, base = (load_causal_lm(options.model, dtype, device=options.device).eval() for _ in range(2))
    if options.adapter:
        tuned = PeftModel.from_pretrained(base, options.adapter)
    else:
        torch.manual_seed(0)
        shape = LoraConfig(r=16, lora_alpha=2, target_modules="all-linear", init_lora_weights=False)
        tuned = get_peft_model(base, shape)
    tuned.to(options.device, dtype).eval()
    return tuned, None, copy.deepcopy(tuned).merge_and_unload(), plain


def describe(model: Any) -> str:
    """Shape of a model in a few words."""
    config = model.config
    millions = sum(weight.numel() for name, weight in model.named_parameters() if "lora_" not in name) / 1e6
    return (
        f"{config.num_hidden_layers} layers of {config.hidden_size}, vocabulary {config.vocab_size}, {millions:.1f} M"
    )


@torch.no_grad()
def plain_loop(policy: Any, reference: Any, prompts: Sequence[Sequence[int]], tokens: int) -> None:
    """Mixing with a = 0.5 the way the paper's released scripts decode; see the head of this file."""
    tiny, end, threshold = 1e-12, -1, math.inf
    for prompt in prompts:
        ids = torch.tensor([prompt], device=policy.device)
        mask = torch.ones_like(ids)
        made: list[Any] = []
        ratios = []
        for _ in range(tokens):
            own, other = (
                model(input_ids=ids, attention_mask=mask).logits[:, -1].float() for model in (policy, reference)
            )
            p, q = own.softmax(-1), other.softmax(-1)
            kl = (p * ((p + tiny).log() - (q + tiny).log())).sum(-1).item()
            logits = own if kl > threshold else 0.5 * own + 0.5 * other
            sampled = logits.softmax(-1)
            token = torch.multinomial(logits.softmax(-1), num_samples=1)
            made.append(token.item())
            ratios.append((sampled[0, made[-1]] + tiny).log() - (q[0, made[-1]] + tiny).log())
            ids = torch.cat([ids, token], dim=1)
            mask = torch.cat([mask, torch.ones((1, 1), device=mask.device)], dim=1)
            if token[0].item() == end:
                break


@torch.inference_mode()
def two_generates(policy: Any, reference: Any, prompts: Sequence[Sequence[int]], tokens: int) -> None:
    """transformers' `generate` of the same batch, once with each model."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=policy.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=policy.device)
    settings = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "pad_token_id": 0}
    limits = {"max_new_tokens": tokens, "min_new_tokens": tokens, "eos_token_id": None}
    with quiet():
        for model in (policy, reference):
            model.generate(input_ids=ids, attention_mask=mask, **settings, **limits)


if __name__ == "__main__":
    main()
