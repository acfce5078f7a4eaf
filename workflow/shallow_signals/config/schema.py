"""Write the JSON schema of the configuration, or check that the written one is up to date.

`python -m shallow_signals.config.schema [--check]`
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from shallow_signals.config.load import json_schema
from shallow_signals.files import write_json

PATH = Path(__file__).resolve().parents[2] / "schemas" / "config.schema.json"


def main() -> int:
    """Write the schema; with `--check` only compare, and return 1 when they differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the written schema, write nothing")
    if not parser.parse_args().check:
        write_json(PATH, json_schema())
        return 0
    written = json.loads(PATH.read_text(encoding="utf-8")) if PATH.is_file() else None
    if written == json.loads(json.dumps(json_schema())):
        return 0
    print(f"{PATH.name} differs from the models: run `make schema`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
