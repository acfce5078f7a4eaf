"""Where a result comes from: sidecars, and which of the library's files a step depends on."""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGE = "shallow_signals"
ROOT = Path(__file__).parent


def sidecar(params: dict[str, Any], hashes: dict[str, str], **facts: Any) -> dict[str, Any]:
    """The record beside a costly output.

    `params` are the step's resolved parameters; `hashes` the inputs' (`content_hash`); `facts` are what only the step
    knows (seed, device, seconds, tokens, revisions, counts).
    """
    canonical = json.dumps(params, sort_keys=True, default=str)
    return {
        **commit(),
        "params": params,
        "params_hash": hashlib.sha256(canonical.encode()).hexdigest()[:16],
        "inputs": hashes,
        "versions": versions(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        **facts,
    }


def commit() -> dict[str, Any]:
    """The commit that the library stands at (None outside a repository), and whether files differ from it."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def versions() -> dict[str, str]:
    """Installed versions of the libraries that decide a result."""
    names = [
        "torch",
        "transformers",
        "tokenizers",
        "datasets",
        "trl",
        "peft",
        "accelerate",
        "numpy",
        "scikit-learn",
        "alpaca_eval",
        "openrlhf",
        "deepspeed",
    ]
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def content_hash(path: Path) -> str:
    """Sixteen hex digits over a file's bytes, or over every file of a folder (names and bytes)."""
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def code_of(*modules: str) -> list[str]:
    """Paths of the library's files that `modules` are made of: themselves and everything of the package they import.

    Modules are named within the package (`training.reward`). Imports inside functions count. A step that lists these
    files as inputs runs again when, and only when, code that it can reach has changed.
    """
    seen: set[str] = set()
    todo = [f"{PACKAGE}.{module}" for module in modules]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        todo.extend(_imports(_path(name)))
    return sorted(str(_path(name)) for name in seen)


def _path(module: str) -> Path:
    base = ROOT.joinpath(*module.split(".")[1:])
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    raise ValueError(f"{PACKAGE} has no module '{module}'")


@cache
def _imports(path: Path) -> tuple[str, ...]:
    """Modules of the package that the file at `path` imports, anywhere in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.append(node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(name for name in found if name.split(".")[0] == PACKAGE and _is_module(name))


def _is_module(name: str) -> bool:
    base = ROOT.joinpath(*name.split(".")[1:])
    return base.with_suffix(".py").is_file() or (base / "__init__.py").is_file()
