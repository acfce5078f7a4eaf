"""Tiny random checkpoints whose chat templates and special tokens behave as those of SmolLM2, Llama-3 and Gemma do.

Each function writes an ordinary checkpoint (safetensors, tokenizer, chat template) into a folder and returns it. The
weights are random but fixed by seed, so two calls write the same model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SEED = 20250521
VOCABULARY = 480
TEXT = [
    "The quick brown fox jumps over the lazy dog, and then it sleeps for the rest of the day.",
    "You are a helpful assistant who answers every question briefly and politely.",
    "How do I bake a good loaf of bread? First mix the flour, the water, the yeast and the salt.",
    "I'm sorry, but I can't help with that. Is there anything else that I could do for you today?",
    "In the morning she walked along the river, counted 12 boats and wrote their names down.",
    "Paris is the capital of France; Berlin is the capital of Germany; Rome is the capital of Italy.",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))\n",
    "1. Heat the oven.\n2. Knead the dough for ten minutes.\n3. Let it rest and bake it until it is brown.\n",
    "What does the word 'preference' mean? It means that someone likes one thing better than another.",
    "Größe, naïve, déjà vu, 東京, Привет and 🙂 are words that need more than one byte for a letter.",
]

# SmolLM2: a default system prompt when the conversation brings none; contents are kept as they are.
CHATML = """{%- if messages[0]['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant who answers every question.<|im_end|>\\n' }}
{%- endif -%}
{%- for turn in messages -%}
{{ '<|im_start|>' + turn['role'] + '\\n' + turn['content'] + '<|im_end|>' + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""

# Llama-3: BOS stands in the template (and is added by the tokenizer, too); contents are trimmed.
LLAMA3 = """{%- for turn in messages -%}
{%- if loop.first -%}{{ bos_token }}{%- endif -%}
{{ '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\\n\\n' + (turn['content'] | trim) + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}"""

# Gemma: no system role, strictly alternating turns, the assistant is called "model"; contents are trimmed.
GEMMA = """{{- bos_token -}}
{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}
{%- for turn in messages -%}
{%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif -%}
{%- set role = 'model' if turn['role'] == 'assistant' else turn['role'] -%}
{{ '<start_of_turn>' + role + '\\n' + (turn['content'] | trim) + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""


def chatml(folder: Path) -> Path:
    """Llama, SmolLM2's template: closing `<|im_end|>\\n` (two tokens), pad == eos == `<|im_end|>`, no BOS added."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    return _write(folder, _tokenizer(specials, CHATML, adds_bos=False, unk_token="<|endoftext|>", **names))


def llama3(folder: Path) -> Path:
    """Llama, Llama-3's template: closing `<|eot_id|>` (one token), BOS by tokenizer and template, no pad token."""
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return _write(
        folder,
        _tokenizer(specials, LLAMA3, adds_bos=True, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"),
    )


def gemma(folder: Path) -> Path:
    """Gemma and its template: closing `<end_of_turn>\\n` (two tokens), own `<pad>`, BOS by tokenizer and template."""
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    return _write(folder, _tokenizer(specials, GEMMA, adds_bos=True, **names), is_gemma=True)


def reward(folder: Path, base: Path) -> Path:
    """The sequence-classification version (one score) of the checkpoint at `base`, its head drawn from a fixed seed.

    The head is drawn wide, so that different tokens get clearly different scores.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(SEED + 1)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(model.score.weight.shape, generator=torch.Generator().manual_seed(SEED)))
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(specials: list[str], template: str, *, adds_bos: bool, **names: str) -> Any:
    """A byte-level BPE tokenizer trained on `TEXT`; the special tokens take the first ids, in their order."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXT, trainer)
    if adds_bos:
        bos = names["bos_token"]
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, core.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **names)
    tokenizer.chat_template = template
    return tokenizer


def _write(folder: Path, tokenizer: Any, *, is_gemma: bool = False) -> Path:
    """A random two-layer model for `tokenizer`; float32."""
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,  # wide enough that what a token sees changes what the model says
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(SEED)
    model: Any
    if is_gemma:
        model = GemmaForCausalLM(GemmaConfig(**shape, head_dim=8, tie_word_embeddings=True))
    else:
        model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False))
    model.to(torch.float32).save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder
