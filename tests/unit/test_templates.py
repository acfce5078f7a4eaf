"""Templates against transformers' own rendering, on the three kinds of template and on SmolLM2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import checkpoints
from realdata import HARMLESS, real_pairs, smollm2
from shallow_signals.files import InputError
from shallow_signals.models.templates import (
    conversation_text,
    fold_system,
    prompt_text,
    read_template,
    render_prompt,
)

USER = {"role": "user", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief."}
KINDS = ["chatml", "llama3", "gemma", "smollm2"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("checkpoints")
    made: dict[str, Any] = {
        name: AutoTokenizer.from_pretrained(getattr(checkpoints, name)(folder / name))
        for name in ("chatml", "llama3", "gemma")
    }
    return made | {"smollm2": smollm2()}


@pytest.fixture
def llama3(tokenizers: dict[str, Any], tmp_path: Path) -> Any:
    """A fresh Llama-3 tokenizer, whose template a test may replace."""
    tokenizers["llama3"].save_pretrained(tmp_path / "fresh")
    return AutoTokenizer.from_pretrained(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("kind", "text", "tokens", "strips", "has_system"),
    [
        ("chatml", "<|im_end|>\n", ["<|im_end|>", "Ċ"], False, True),
        ("smollm2", "<|im_end|>\n", ["<|im_end|>", "Ċ"], False, True),
        ("llama3", "<|eot_id|>", ["<|eot_id|>"], True, True),
        ("gemma", "<end_of_turn>\n", ["<end_of_turn>", "Ċ"], True, False),
    ],
)
def test_closing(
    tokenizers: dict[str, Any], kind: str, text: str, tokens: list[str], strips: bool, has_system: bool
) -> None:
    template = read_template(tokenizers[kind], "auto")
    assert template.closing_text == text
    assert tokenizers[kind].convert_ids_to_tokens(list(template.closing_ids)) == tokens
    assert (template.strips, template.has_system) == (strips, has_system)


def test_closing_ids_of_smollm2() -> None:
    assert read_template(smollm2(), "auto").closing_ids == (2, 198)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_transformers_own(tokenizers: dict[str, Any], shared_data: Path, kind: str) -> None:
    tokenizer = tokenizers[kind]
    prompts = real_pairs(shared_data, HARMLESS, 40)["prompt"].to_pylist()
    assert max(len(prompt) for prompt in prompts) > 2  # several turns
    for prompt in prompts:
        own = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True)["input_ids"]
        assert render_prompt(tokenizer, prompt, "auto") == own


@pytest.mark.parametrize("kind", KINDS)
def test_conversations_are_transformers_own(tokenizers: dict[str, Any], kind: str) -> None:
    tokenizer = tokenizers[kind]
    template = read_template(tokenizer, "auto")
    response = " Good morning! 🙂 "
    own = tokenizer.apply_chat_template([USER, {"role": "assistant", "content": response}], tokenize=False)
    assert template.bos_text + conversation_text(tokenizer, template, [USER], response) == own
    kept = response.strip() if template.strips else response
    assert own.endswith(prompt_text(tokenizer, template, [USER]) + kept + template.closing_text)


@pytest.mark.parametrize("kind", ["llama3", "gemma"])
def test_bos_once_or_never(tokenizers: dict[str, Any], kind: str) -> None:
    tokenizer = tokenizers[kind]
    bos = tokenizer.bos_token_id
    once = render_prompt(tokenizer, [USER], "auto")
    assert once[0] == bos
    assert once.count(bos) == 1
    assert render_prompt(tokenizer, [USER], "never") == once[1:]
    # The trap: a rendering that is tokenised as plain text gets a second BOS.
    rendering = tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    assert tokenizer(rendering)["input_ids"].count(bos) == 2


@pytest.mark.parametrize("kind", ["chatml", "smollm2"])
def test_a_bos_that_opens_turns_stays(tokenizers: dict[str, Any], kind: str) -> None:
    tokenizer = tokenizers[kind]
    assert tokenizer.bos_token == "<|im_start|>"
    ids = render_prompt(tokenizer, [SYSTEM, USER], "never")
    assert ids == render_prompt(tokenizer, [SYSTEM, USER], "auto")
    assert ids.count(tokenizer.bos_token_id) == 3  # system, user, assistant
    assert ids[0] == tokenizer.bos_token_id


def test_bos_that_only_the_tokenizer_adds(llama3: Any) -> None:
    expected = render_prompt(llama3, [USER], "auto")
    llama3.chat_template = checkpoints.LLAMA3.replace("{{ bos_token }}", "")
    assert llama3.bos_token not in llama3.apply_chat_template([USER], tokenize=False)
    assert render_prompt(llama3, [USER], "auto") == expected
    assert render_prompt(llama3, [USER], "never") == expected[1:]


def test_system_turn_is_folded_where_it_is_refused(tokenizers: dict[str, Any]) -> None:
    folded = [{"role": "user", "content": "Be brief.\n\nHello"}]
    assert fold_system([SYSTEM, USER]) == folded
    gemma = tokenizers["gemma"]
    assert render_prompt(gemma, [SYSTEM, USER], "auto") == render_prompt(gemma, folded, "auto")
    for kind in ("chatml", "llama3", "smollm2"):
        assert render_prompt(tokenizers[kind], [SYSTEM, USER], "auto") != render_prompt(
            tokenizers[kind], folded, "auto"
        )


def test_fold_system_keeps_every_text_and_turn() -> None:
    answer = {"role": "assistant", "content": "Hi"}
    assert fold_system([USER, answer, USER]) == [USER, answer, USER]
    assert fold_system([SYSTEM, SYSTEM, USER, answer]) == [
        {"role": "user", "content": "Be brief.\n\nBe brief.\n\nHello"},
        answer,
    ]
    assert fold_system([SYSTEM]) == [{"role": "user", "content": "Be brief."}]


def test_a_template_that_drops_system_turns_has_none(llama3: Any) -> None:
    assert read_template(llama3, "auto").has_system
    llama3.chat_template = (
        "{%- for turn in messages -%}{%- if turn['role'] != 'system' -%}"
        "[{{ turn['role'] }}]{{ turn['content'] }}</s>{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}[assistant]{%- endif -%}"
    )
    template = read_template(llama3, "auto")
    assert not template.has_system
    assert "Be brief." in prompt_text(llama3, template, [SYSTEM, USER])


OPEN = "{%- for turn in messages -%}[{{ turn['role'] }}]"
CLOSE = "</s>{%- endfor -%}"
GENERATE = "{%- if add_generation_prompt -%}[assistant]{%- endif -%}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "chat_template is missing"),
        (OPEN + "{{ turn['content'] }}" + CLOSE + "{%- if add_generation_prompt -%}[bot]{%- endif -%}", "start with"),
        (OPEN + "{%- if loop.last %}<think>{% endif -%}{{ turn['content'] }}" + CLOSE + GENERATE, "start with"),
        (OPEN + "{{ turn['content'].rstrip() }}" + CLOSE + GENERATE, "only a part of the white space"),
    ],
)
def test_templates_that_cannot_be_used(llama3: Any, template: str | None, message: str) -> None:
    llama3.chat_template = template
    with pytest.raises(InputError, match=message) as error:
        read_template(llama3, "auto")
    assert "\n" not in str(error.value)


def test_the_refused_templates_differ_from_a_good_one_only_in_what_is_refused(llama3: Any) -> None:
    llama3.chat_template = OPEN + "{{ turn['content'] }}" + CLOSE + GENERATE
    assert read_template(llama3, "auto").closing_text == "</s>"
