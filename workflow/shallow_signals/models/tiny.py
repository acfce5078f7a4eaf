"""The demo's base model: a byte-level BPE tokenizer and a tiny Llama, trained on unlabelled texts of the planted world.

What is saved is an ordinary checkpoint, so that every later step treats it as it treats a model of the hub.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed

from shallow_signals.config.sources import TinyModel
from shallow_signals.data.planted import responses

PAD, START, END = "<pad>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MAX_POSITIONS = 1024
# Small batches, a wider start than 0.02 and a shorter memory of squared gradients: otherwise some seeds end before the
# model has found that the two quality words of a sentence agree, and all that is planted rests on that.
_BATCH = 8  # texts
_INITIAL_SPREAD = 0.05
_ADAM_BETA2 = 0.98
_HELD_OUT = 256  # texts whose loss is reported
_IGNORED = -100  # a label that the loss leaves out


def train_tiny_model(source: TinyModel, folder: Path) -> dict[str, Any]:
    """Train tokenizer and model on `source.texts` texts, save both to `folder`; the same seed gives the same weights.

    The loss is that of the response and its closing; the prompt is read but not learned. Returns what only the training
    knows: `tokens` (read in all epochs, padding left out), `seconds`, `loss` (nats per token of response and closing,
    on texts held out) and `parameters`.
    """
    started = time.monotonic()
    texts = responses(source.seed, source.texts + _HELD_OUT)
    tokenizer = train_tokenizer(texts[: source.texts], source.vocabulary)
    rows = [_encode(tokenizer, prompt, response) for prompt, response in texts]
    train, held_out = rows[: source.texts], rows[source.texts :]

    set_seed(source.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=source.hidden,
            intermediate_size=2 * source.hidden,
            num_hidden_layers=source.layers,
            num_attention_heads=source.heads,
            max_position_embeddings=MAX_POSITIONS,
            initializer_range=_INITIAL_SPREAD,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                per_device_train_batch_size=_BATCH,
                per_device_eval_batch_size=_BATCH,
                num_train_epochs=source.epochs,
                learning_rate=source.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=20,
                adam_beta2=_ADAM_BETA2,
                weight_decay=0.01,
                train_sampling_strategy="group_by_length",
                seed=source.seed,
                use_cpu=not torch.cuda.is_available(),
                bf16=False,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                dataloader_pin_memory=False,
            ),
            train_dataset=train,
            eval_dataset=held_out,
            data_collator=lambda batch: _collate(batch, int(tokenizer.pad_token_id)),
        )
        trainer.train()
        loss = trainer.evaluate()["eval_loss"]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "tokens": source.epochs * sum(len(row["input_ids"]) for row in train),
        "seconds": round(time.monotonic() - started, 1),
        "loss": float(loss),
        "parameters": model.num_parameters(),
    }


def train_tokenizer(texts: list[tuple[str, str]], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocabulary` tokens with ChatML's special tokens and template, without BOS.

    With 512 tokens every word of a response, with the space before it, is one token: 7 to a sentence.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # Roles and line feeds stand in every rendered text; rendering them here would teach merges across special tokens.
    parts = [part for prompt, response in texts for part in ("user", prompt, "assistant", response)]
    tokenizer.train_from_iterator(
        ["system", *parts],
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[PAD, START, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _encode(tokenizer: PreTrainedTokenizerFast, prompt: str, response: str) -> dict[str, list[int]]:
    """Ids of the rendered conversation, with the prompt's labels left out of the loss."""
    turn = [{"role": "user", "content": prompt}]
    head = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template([*turn, {"role": "assistant", "content": response}], tokenize=False)
    prompt_ids = tokenizer(head, add_special_tokens=False)["input_ids"]
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    return {"input_ids": ids, "labels": [_IGNORED] * len(prompt_ids) + ids[len(prompt_ids) :]}


def _collate(rows: list[dict[str, list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """Pad on the right: `input_ids` and `labels`, [texts, longest]; causal attention needs no mask then."""
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, value: int) -> torch.Tensor:
        return torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in rows])

    return {"input_ids": padded("input_ids", pad), "labels": padded("labels", _IGNORED)}
