"""Copy a finished run's results page to the documentation: `python -m shallow_signals.paper.publish RESULTS DOCS`."""

from __future__ import annotations

import sys
from pathlib import Path

from shallow_signals.files import InputError
from shallow_signals.paper.page import publish


def main(results: Path, docs: Path) -> None:
    """Publish, and say what was written."""
    written = publish(results, docs)
    print(f"{len(written)} files in {docs}")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except InputError as error:
        sys.exit(f"error: {error}")
