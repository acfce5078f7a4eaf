"""The jobs of a run, as the workflow engine itself plans them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from shallow_signals.config.load import load_study, merge, sized
from shallow_signals.config.study import Study
from shallow_signals.files import InputError

CONFIG = Path("config.yaml")
NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Asked:
    """A run as it is asked for: its configuration, as merged and as validated, and how many jobs run side by side."""

    merged: dict[str, Any]
    study: Study
    overlays: list[Path]
    cores: int

    def left_to(self, size: str) -> list[str]:
        """What another size of the run would do beyond this one: a line for each key."""
        lines = []
        for key, there in _flat(self.merged.get("sizes", {}).get(size, {})):
            here = _at(self.merged, key)
            if isinstance(here, list) and isinstance(there, list):
                more = [str(value) for value in there if value not in here]
                if more:
                    lines.append(f"{key}: {', '.join(more)}")
            elif here != there and key != "run":
                lines.append(
                    f"{key}: {'all' if there is None else there} in place of {'all' if here is None else here}"
                )
        return lines


def read_study(profile: Path | None, overlays: Sequence[Path], settings: Mapping[str, str] = NOTHING) -> Asked:
    """The configuration of a run: `config.yaml`, the overlays given or those of the profile, and single settings."""
    declared = (_yaml(profile / "config.yaml") or {}) if profile else {}
    if not overlays:
        named = declared.get("configfile", [])
        overlays = [Path(name) for name in ([named] if isinstance(named, str) else named)]
    merged: dict[str, Any] = {}
    for path in (CONFIG, *overlays):
        merged = merge(merged, _yaml(path) or {})
    merged = sized({**merged, **settings})
    cores = declared.get("cores", 1)
    return Asked(merged, load_study(merged), list(overlays), cores if isinstance(cores, int) else 1)


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


def _flat(overlay: Mapping[str, Any], *above: str) -> Iterator[tuple[str, Any]]:
    for key, value in overlay.items():
        if isinstance(value, dict):
            yield from _flat(value, *above, key)
        else:
            yield ".".join((*above, key)), value


def _at(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error
