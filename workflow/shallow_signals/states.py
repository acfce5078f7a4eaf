"""Where a long step keeps what it has finished, so that a killed one goes on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shallow_signals.config.hashing import config_hash


def state_folder(out: Path, params: Mapping[str, Any], hashes: Mapping[str, str]) -> Path:
    """A hidden sibling of `out` for resumable states, named by the parameters and the inputs' content hashes.

    Another recipe, seed or data set never meets a state that is not its own.
    """
    key = config_hash({"params": dict(params), "inputs": dict(hashes)})
    return out.parent / f".{out.name}.state-{key}"


def forget_states(state: Path) -> None:
    """Drop the states in `state`, once its output is there, and those of other parameters that it replaces."""
    for folder in state.parent.glob(f"{state.name.rpartition('-')[0]}-*"):
        shutil.rmtree(folder, ignore_errors=True)
