"""Sidecars, content hashes and the closure of a step's code."""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
from pathlib import Path

from shallow_signals.files import replacing, write_json
from shallow_signals.provenance import ROOT, code_of, content_hash, sidecar

SCRIPTS = ROOT.parent / "scripts"


def names(*modules: str) -> set[str]:
    return {Path(path).relative_to(ROOT).as_posix() for path in code_of(*modules)}


def test_code_closure_equals_what_python_really_loads() -> None:
    """The static closure against the modules that a fresh interpreter has after the import (nothing lazy here)."""
    script = (
        "import sys, shallow_signals.data.pairs, shallow_signals.config.load\n"
        "print('\\n'.join(m.__file__ for n, m in sys.modules.items() if n.startswith('shallow_signals')))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    expected = {Path(line).relative_to(ROOT).as_posix() for line in loaded.split() if line}
    closure = names("data.pairs", "config.load")
    # Packages' own __init__ files are loaded with any of their modules; they hold a docstring only.
    assert {n for n in expected if not n.endswith("__init__.py")} == {
        n for n in closure if not n.endswith("__init__.py")
    }


def test_code_closure_sees_imports_inside_functions_and_nothing_else() -> None:
    closure = names("data.ingest")
    assert {"data/ingest.py", "data/pairs.py", "data/planted.py", "files.py"} <= closure
    assert not any(name.startswith(("training/", "paper/", "evaluation/")) for name in closure)


def test_layers_import_one_way() -> None:
    order = ["config", "data", "models", "training", "signal", "evaluation", "decoding", "paper", "planning"]
    rank = {
        "config": 0,
        "data": 1,
        "models": 2,
        "training": 3,
        "signal": 4,
        "evaluation": 4,
        "decoding": 4,
        "paper": 5,
        "planning": 6,
    }
    for path in ROOT.glob("*/*.py"):
        layer = path.parent.name
        assert layer in order
        module = f"{layer}.{path.stem}" if path.stem != "__init__" else layer
        for name in names(module):
            if "/" in name and not name.endswith("__init__.py"):
                assert rank[name.split("/")[0]] <= rank[layer], f"{module} reaches {name}"


def test_arithmetic_on_results_loads_no_torch() -> None:
    """Gathering, tables and figures: dozens of short jobs, each of which would wait seconds for it."""
    scripts = [
        script for name in ("gather_*", "draw_*", "make_table*", "write_page") for script in SCRIPTS.glob(f"{name}.py")
    ]
    trees = [ast.walk(ast.parse(script.read_text(encoding="utf-8"))) for script in scripts]
    imports = {ast.unparse(node) for tree in trees for node in tree if isinstance(node, ast.Import | ast.ImportFrom)}
    lines = [line for line in imports if line.startswith(("import", "from shallow_signals"))]
    assert len(lines) > len(scripts)
    code = "\n".join([*lines, "import sys", "print('torch' in sys.modules)"])
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_content_hash_sees_bytes_and_names(tmp_path: Path) -> None:
    for folder, name, text in (("a", "x", "1"), ("b", "x", "1"), ("c", "x", "2"), ("d", "y", "1")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
    hashes = {folder: content_hash(tmp_path / folder) for folder in "abcd"}
    assert hashes["a"] == hashes["b"]
    assert len(set(hashes.values())) == 3


def test_sidecar_names_what_a_result_depends_on(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("x")
    record = sidecar({"lr": 1}, {"data": content_hash(tmp_path / "in")}, seed=3)
    assert json.loads(json.dumps(record))["seed"] == 3
    assert record["inputs"]["data"] == hashlib.sha256(b"x").hexdigest()[:16]
    assert record["params_hash"] != sidecar({"lr": 2}, {})["params_hash"]
    assert "torch" in record["versions"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    try:
        with replacing(path) as partial:
            partial.write_text("half")
            raise RuntimeError("killed")
    except RuntimeError:
        pass
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]
