"""Loading: heads that must be there, heads that are drawn, and what is refused."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import checkpoints
from shallow_signals.files import InputError
from shallow_signals.models import load

FAMILIES = ["chatml", "llama3", "gemma"]


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return getattr(checkpoints, request.param)(tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.llama3(tmp_path_factory.mktemp("llama"))


def test_weights_are_those_of_the_file(base: Path) -> None:
    stored = load_file(base / "model.safetensors")
    model = load.load_causal_lm(base)
    loaded = dict(model.named_parameters())
    assert not model.training
    assert all(torch.equal(loaded[name], stored[name]) for name in loaded)
    half = load.load_causal_lm(base, torch.bfloat16, "eager")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.config._attn_implementation == "eager"


def test_tokenizer_is_unchanged(base: Path) -> None:
    tokenizer = load.load_tokenizer(base)
    assert tokenizer.chat_template == (base / "chat_template.jinja").read_text()
    assert (tokenizer.pad_token is None) == ("begin_of_text" in tokenizer.bos_token)


def test_new_head_depends_on_the_seed_only(base: Path) -> None:
    def head(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return load.load_reward_model(base, dtype, finished=False, seed=seed).score.weight.detach()

    torch.manual_seed(1)
    first = head(7)
    torch.manual_seed(2)
    assert torch.equal(first, head(7))
    assert torch.equal(first.bfloat16(), head(7, torch.bfloat16))
    assert not torch.equal(first, head(8))
    assert first.shape == (1, 32)
    assert 0.1 < float(first.std()) < 0.3  # the checkpoints' initializer_range is 0.2


def test_finished_reward_model_keeps_its_head(base: Path, tmp_path: Path) -> None:
    folder = checkpoints.reward(tmp_path, base)
    stored = load_file(folder / "model.safetensors")
    for finished in (True, False):
        model = load.load_reward_model(folder, finished=finished, seed=3)
        assert torch.equal(model.score.weight.detach(), stored["score.weight"])


def test_causal_checkpoint_is_no_finished_reward_model(base: Path) -> None:
    with pytest.raises(InputError, match=r"score\.weight is missing"):
        load.load_reward_model(base)


def test_a_lost_weight_is_an_error(llama: Path, tmp_path: Path) -> None:
    weights = load_file(llama / "model.safetensors")
    lost = "model.layers.1.mlp.down_proj.weight"
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((llama / "config.json").read_text())
    for loader in (load.load_causal_lm, lambda folder: load.load_reward_model(folder, finished=False)):
        with pytest.raises(InputError, match=lost):
            loader(tmp_path)


def test_pickled_weights_are_refused(llama: Path, tmp_path: Path) -> None:
    torch.save(load_file(llama / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((llama / "config.json").read_text())
    with pytest.raises(InputError, match="safetensors"):
        load.load_causal_lm(tmp_path)
    with pytest.raises(InputError, match=r"tokenizer\.json is missing"):
        load.load_tokenizer(tmp_path)
    with pytest.raises(InputError, match=r"config\.json is missing"):
        load.load_causal_lm(tmp_path / "nowhere")


def test_broken_weights_are_one_line(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((llama / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((llama / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(InputError, match="can't be loaded") as caught:
        load.load_causal_lm(tmp_path)
    assert "\n" not in str(caught.value)


def test_code_of_a_checkpoint_never_runs(llama: Path, tmp_path: Path) -> None:
    """A checkpoint whose config points at its own code is loaded by the library's class, its code left alone."""
    for file in llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    assert type(load.load_causal_lm(tmp_path)).__name__ == "LlamaForCausalLM"
    assert not (tmp_path / "ran").exists()


def test_loading_is_quiet(llama: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from shallow_signals.models import load\n"
        "load.load_reward_model(Path(sys.argv[1]), finished=False); load.load_tokenizer(Path(sys.argv[1]))\n"
        "from transformers.utils import logging\n"
        "assert logging.is_progress_bar_enabled() and logging.get_verbosity() == logging.WARNING\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(llama)], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def test_quiet_restores_after_an_error() -> None:
    from transformers.utils import logging as hf_logging

    before = hf_logging.get_verbosity()
    with pytest.raises(RuntimeError), load.quiet():
        assert hf_logging.get_verbosity() == logging.ERROR
        raise RuntimeError
    assert hf_logging.get_verbosity() == before


def test_bfloat16_is_asked_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    if hasattr(torch.cpu, "_is_avx512_bf16_supported") and Path("/proc/cpuinfo").is_file():
        supported = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        assert load.fast_bfloat16("cpu") == supported
    for flags, expected in (({"avx512_bf16"}, True), ({"amx_bf16", "fma"}, True), ({"avx2", "avx512f"}, False)):
        monkeypatch.setattr(load, "_cpu_flags", lambda flags=flags: frozenset(flags))
        assert load.fast_bfloat16(torch.device("cpu")) is expected
        assert load.pick_compute_dtype("auto", "cpu") == (torch.bfloat16 if expected else torch.float32)
        assert load.pick_compute_dtype("float32", "cpu") == torch.float32
        assert load.pick_compute_dtype("bfloat16", "cpu") == torch.bfloat16
    assert load.pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
