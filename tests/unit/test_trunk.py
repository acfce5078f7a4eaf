"""Layers that models share, read once: the same scores, and a refusal wherever they would not be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification
from transformers.models.llama.modeling_llama import LlamaAttention

from scored_pairs import Family, columns, shards, tokens_file
from shallow_signals.evaluation.score_runs import (
    Scoring,
    benchmark_trunk,
    heldout_trunk,
    score_benchmark,
    score_heldout,
)
from shallow_signals.files import InputError, read_parquet

SCORING = Scoring(2048, "keep", "float32", "sdpa", [25, 50, 100])


def trained(folder: Path, family: Family, layer: int, seed: int) -> Path:
    """The family's reward model, other weights in the layers from `layer` on and in its head."""
    model = AutoModelForSequenceClassification.from_pretrained(family.folder, dtype=torch.float32)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in (*model.base_model.layers[layer:].parameters(), *model.score.parameters()):
            weight += 0.1 * torch.randn(weight.shape, generator=draw)
    model.save_pretrained(folder)
    family.tokenizer.save_pretrained(folder)
    return folder


def cut(row: dict[str, Any], first: int, last: int | None) -> dict[str, Any]:
    return {**row, **{side: row[side][first:last] for side in ("chosen_ids", "rejected_ids")}}


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("keeps", ["half", "other heads", "tails"])
def test_held_out_scores_are_those_of_the_whole_model(family: Family, tmp_path: Path, layers: int, keeps: str) -> None:
    """Of models that differ above the trunk, on beginnings that it holds, beginnings that it does not, and tails."""
    kept = {
        "half": [
            {**row, **{side: row[side][: max(1, len(row[side]) // 2)] for side in ("chosen_ids", "rejected_ids")}}
            for row in family.rows
        ],
        "other heads": [cut(row, 0, 1 + len(row["chosen_ids"]) // 3) for row in family.rows],
        "tails": [cut(row, len(row["rejected_ids"]) // 2, None) for row in family.rows],
    }[keeps]
    tokens = tokens_file(tmp_path / "tokens.parquet", family.rows, family.closing)
    full, part = shards(tmp_path / "full", family.rows), shards(tmp_path / "part", kept)
    trunk = tmp_path / "trunk.safetensors"
    heldout_trunk(family.folder.parent / "base", layers, full, tokens, SCORING, trunk)
    found = []
    for seed in (1, 2):
        model = trained(tmp_path / f"model{seed}", family, layers, seed)
        score_heldout(model, full, part, tokens, SCORING, tmp_path / "whole")
        score_heldout(model, full, part, tokens, SCORING, tmp_path / "from_trunk", trunk)
        whole, ours = (sorted_rows(tmp_path / name) for name in ("whole", "from_trunk"))
        assert ours.drop_columns(["chosen", "rejected"]).equals(whole.drop_columns(["chosen", "rejected"]))
        assert columns(ours) == pytest.approx(columns(whole), abs=1e-4)
        found.append(columns(ours))
    assert np.abs(found[0] - found[1]).max() > 0.1  # they are different models


def sorted_rows(path: Path) -> Any:
    return read_parquet(path).sort_by([("pair_id", "ascending"), ("test", "ascending")])


def test_the_shared_layers_do_not_run_again(chatml: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tokens_file(tmp_path / "tokens.parquet", chatml.rows, chatml.closing)
    trunk = tmp_path / "trunk.safetensors"
    benchmark_trunk(chatml.folder.parent / "base", 1, tokens, None, SCORING, trunk)
    asked: list[int] = []
    forward = LlamaAttention.forward

    def noted(self: LlamaAttention, *given: Any, **named: Any) -> Any:
        asked.append(self.layer_idx)
        return forward(self, *given, **named)

    monkeypatch.setattr(LlamaAttention, "forward", noted)
    score_benchmark(chatml.folder, tokens, None, SCORING, tmp_path / "from_trunk", trunk)
    assert set(asked) == {1}
    score_benchmark(chatml.folder, tokens, None, SCORING, tmp_path / "whole")
    assert set(asked) == {0, 1}
    assert columns(read_parquet(tmp_path / "from_trunk")) == pytest.approx(
        columns(read_parquet(tmp_path / "whole")), abs=1e-4
    )


def test_in_bfloat16(chatml: Family, tmp_path: Path) -> None:
    """States are kept as they are computed, so that nothing is rounded twice."""
    scoring = Scoring(2048, "keep", "bfloat16", "sdpa", [50, 100])
    tokens = tokens_file(tmp_path / "tokens.parquet", chatml.rows, chatml.closing)
    trunk = tmp_path / "trunk.safetensors"
    benchmark_trunk(chatml.folder.parent / "base", 1, tokens, 3, scoring, trunk)
    assert load_file(trunk)["states"].dtype == torch.bfloat16
    score_benchmark(chatml.folder, tokens, 3, scoring, tmp_path / "whole")
    score_benchmark(chatml.folder, tokens, 3, scoring, tmp_path / "from_trunk", trunk)
    whole, ours = (columns(read_parquet(tmp_path / name)) for name in ("whole", "from_trunk"))
    assert ours == pytest.approx(whole, abs=float(0.02 * whole.std()))


def test_a_trunk_of_something_else_is_refused(chatml: Family, tmp_path: Path) -> None:
    tokens = tokens_file(tmp_path / "tokens.parquet", chatml.rows, chatml.closing)
    base, trunk, out = chatml.folder.parent / "base", tmp_path / "trunk.safetensors", tmp_path / "out"
    benchmark_trunk(base, 1, tokens, None, SCORING, trunk)
    with pytest.raises(InputError, match=r"trunk\.safetensors: was made of other texts"):
        score_benchmark(chatml.folder, tokens, 2, SCORING, out, trunk)
    with pytest.raises(InputError, match=r"other texts"):
        score_benchmark(chatml.folder, tokens, None, Scoring(2048, "keep", "float32", "sdpa", [33]), out, trunk)
    with pytest.raises(InputError, match=r"holds torch\.float32, the model torch\.bfloat16"):
        score_benchmark(
            chatml.folder, tokens, None, Scoring(2048, "keep", "bfloat16", "sdpa", [25, 50, 100]), out, trunk
        )
    with pytest.raises(InputError, match=r"first 1 layers are not those that made it"):
        score_benchmark(trained(tmp_path / "other", chatml, 0, 1), tokens, None, SCORING, out, trunk)
    (tmp_path / "broken").write_bytes(trunk.read_bytes()[:50])
    with pytest.raises(InputError, match=r"broken: can't be read as a trunk"):
        score_benchmark(chatml.folder, tokens, None, SCORING, out, tmp_path / "broken")
    assert not out.exists()


def test_wrong_states_would_be_seen(chatml: Family, tmp_path: Path) -> None:
    """What the comparisons above would say of a trunk whose tokens are shifted by one."""
    tokens = tokens_file(tmp_path / "tokens.parquet", chatml.rows, chatml.closing)
    trunk, shifted = tmp_path / "trunk.safetensors", tmp_path / "shifted.safetensors"
    benchmark_trunk(chatml.folder.parent / "base", 1, tokens, None, SCORING, trunk)
    with safe_open(trunk, framework="pt") as file:
        facts = file.metadata()
    held = load_file(trunk)
    save_file({**held, "states": held["states"].roll(1, 0).contiguous()}, shifted, facts)
    score_benchmark(chatml.folder, tokens, None, SCORING, tmp_path / "right", trunk)
    score_benchmark(chatml.folder, tokens, None, SCORING, tmp_path / "wrong", shifted)
    right, wrong = (columns(read_parquet(tmp_path / name)) for name in ("right", "wrong"))
    assert np.abs(right - wrong).max() > 0.1
