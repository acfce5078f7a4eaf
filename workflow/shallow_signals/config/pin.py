"""Look up the current revision of every hub repository whose revision is open, and keep them in pins.json.

`python -m shallow_signals.config.pin config.yaml [overlay.yaml ...]`, on a machine that reaches the hub.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from shallow_signals.config.generation import HubInstructions, LengthControl
from shallow_signals.config.load import load_study, merge
from shallow_signals.config.sources import HubModel, HubSource
from shallow_signals.config.study import Study
from shallow_signals.files import InputError, write_json

PINS = Path("pins.json")


def open_revisions(study: Study) -> list[tuple[str, str]]:
    """(repository, its type on the hub) of every source without a revision."""
    sets: list[HubSource | HubInstructions | LengthControl] = [
        d.source for d in study.datasets.values() if isinstance(d.source, HubSource)
    ]
    sets += [i.source for i in study.instructions.values() if isinstance(i.source, HubInstructions)]
    sets += [
        c.length_control for c in study.alpacaeval.values() if c.length_control.gamed or c.length_control.difficulty
    ]
    models = [m.source for m in study.models.values() if isinstance(m.source, HubModel)]
    found = [(s.repo, "dataset") for s in sets if s.revision is None]
    found += [(m.repo, "model") for m in models if m.revision is None]
    return sorted({item for item in found if not Path(item[0]).is_dir()})


def main(paths: list[str]) -> int:
    """Resolve and write; one line for each repository that can't be resolved, and 1 if there are any."""
    from huggingface_hub import HfApi

    config: dict[str, Any] = {}
    for path in paths:
        config = merge(config, yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    pins = json.loads(PINS.read_text(encoding="utf-8")) if PINS.is_file() else {}
    failed = []
    for repo, kind in open_revisions(load_study(config)):
        try:
            pins[repo] = HfApi().repo_info(repo, repo_type=kind).sha
        except Exception as error:
            failed.append(f"{kind} {repo}: {str(error).splitlines()[0] or type(error).__name__}")
    write_json(PINS, dict(sorted(pins.items())))
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:] or ["config.yaml"]))
    except InputError as error:
        sys.exit(f"error: {error}")
