"""The library example of docs/extending.md runs as it is printed, and what the pages link to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import checkpoints
from shallow_signals.files import InputError
from shallow_signals.models.load import load_causal_lm, load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "extending.md"


def example() -> str:
    found = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def test_two_models_decode_as_documented(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = checkpoints.chatml(tmp_path / "reference")
    policy = tmp_path / "policy"
    model = load_causal_lm(reference)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight += 0.3
    model.save_pretrained(policy)
    load_tokenizer(reference).save_pretrained(policy)
    exec(example(), {"policy_folder": policy, "reference_folder": reference})
    lines = capsys.readouterr().out.splitlines()
    first = {line.split()[0]: line for line in lines if " KL " in line}
    assert list(first) == ["reference", "mix0.50", "length8", "threshold0.1", "policy"]
    assert "KL 0.000" in first["reference"] and "KL 0.000" not in first["policy"]


def test_the_documented_call_refuses_another_vocabulary(tmp_path: Path) -> None:
    folders = {
        "policy_folder": checkpoints.chatml(tmp_path / "a"),
        "reference_folder": checkpoints.llama3(tmp_path / "b"),
    }
    with pytest.raises(InputError, match="differ in vocabulary"):
        exec(example(), folders)


@pytest.mark.parametrize("page", sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")]), ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    """In a fresh clone, where nothing lies about that isn't committed."""
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if not target.startswith(("http:", "https:"))]
    assert [target for target in local if not (page.parent / target).exists()] == []
    assert local or page.name != "README.md"
