"""The jobs of a run, as the workflow engine itself plans them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from shallow_signals.config.load import load_study, merge
from shallow_signals.config.study import Study
from shallow_signals.files import InputError

CONFIG = Path("config.yaml")


def read_study(profile: Path | None, overlays: Sequence[Path], data_root: str | None) -> tuple[Study, list[Path]]:
    """The configuration of a run and its overlays: those given, or those of the profile."""
    if profile is not None and not overlays:
        named = (_yaml(profile / "config.yaml") or {}).get("configfile", [])
        overlays = [Path(name) for name in ([named] if isinstance(named, str) else named)]
    merged: dict[str, Any] = {}
    for path in (CONFIG, *overlays):
        merged = merge(merged, _yaml(path) or {})
    return load_study(merged | ({"data_root": data_root} if data_root else {})), list(overlays)


def planned_jobs(arguments: Sequence[str], results: Path) -> list[tuple[str, list[str]]]:
    """(rule, outputs below `results`) of every job of a dry-run with `arguments`."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise InputError(f"the dry-run failed:\n{(ended.stdout + ended.stderr)[-3000:]}")
    return parse_jobs(ended.stdout, results)


def parse_jobs(text: str, results: Path) -> list[tuple[str, list[str]]]:
    """The jobs of a dry-run's output."""
    found = []
    for block in re.split(r"^(?=(?:local)?rule \w+:$)", text, flags=re.MULTILINE):
        rule = re.match(r"(?:local)?rule (\w+):$", block, re.MULTILINE)
        if rule is None or rule[1] == "all":
            continue
        line = re.search(r"^\s+output: (.*)$", block, re.MULTILINE)
        paths = [Path(part) for part in line[1].split(", ")] if line else []
        below = [path.relative_to(results).as_posix() for path in paths if path.is_relative_to(results)]
        found.append((rule[1], below))
    return found


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error
