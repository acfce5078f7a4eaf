"""Judging a comparison: every model's outputs against the reference's, one file of annotations a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from shallow_signals.config.generation import ApiJudge
from shallow_signals.evaluation.alpaca_files import Record, check_instructions, read_outputs, write_annotations
from shallow_signals.files import InputError, read_parquet


def judge_outputs(
    judge: Mapping[str, Any],
    folder: Path | None,
    instructions: Path,
    reference: Path | None,
    outputs: Sequence[Path],
    out: Sequence[Path],
    *,
    name: str,
    cache: Path,
    report: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Judge each of `outputs` against `reference` and write its annotations to the path in `out` at its place.

    `judge` is {"kind": "api", ...} with the configuration's keys, or what `evaluation.rewards.rewards` takes, whose
    checkpoint is `folder`; `name` is what a reward calls itself in the annotations. `reference` None takes the outputs
    that are stored with the instructions. The planted truth prefers the larger reward; a reward model's preference is
    its Bradley-Terry probability. An API's answers go to `cache`, which outlives failed runs, and before anything is
    asked `report` gets one line with the cost of all comparisons together. Returns facts for a sidecar, one a model.
    """
    table = read_parquet(instructions)
    asked = table.select(["instruction"]).to_pylist()
    against = stored_outputs(table, instructions) if reference is None else read_outputs(reference)
    models = [read_outputs(path) for path in outputs]
    for path, records in zip([reference or instructions, *outputs], [against, *models], strict=True):
        check_instructions(records, asked, str(path))
    if judge["kind"] == "api":
        return _by_api(judge, against, models, out, cache, report)
    return _by_reward(judge, folder, table, against, models, out, name)


def stored_outputs(table: pa.Table, where: Path) -> list[dict[str, Any]]:
    """The outputs that a set of instructions (schema `data.instructions.INSTRUCTIONS`) brings along, as records."""
    records = []
    for number, row in enumerate(table.select(["instruction", "output", "generator"]).to_pylist()):
        if row["output"] is None:
            raise InputError(f"{where}: row {number} has no stored output to compare with; set `against: base`")
        records.append({**row, "generator": row["generator"] or "stored output"})
    return records


def _by_api(
    judge: Mapping[str, Any],
    reference: Sequence[Record],
    models: Sequence[Sequence[Record]],
    out: Sequence[Path],
    cache: Path,
    report: Callable[[str], None],
) -> list[dict[str, Any]]:
    from shallow_signals.evaluation import judge_api
    from shallow_signals.evaluation.judge_client import Patience

    asked = ApiJudge.model_validate(judge)
    settings = judge_api.ApiJudge(
        model=asked.model,
        input_price=asked.input_price,
        output_price=asked.output_price,
        base_url=asked.base_url,
        key_variable=asked.key_variable,
        patience=Patience(concurrency=asked.concurrency, timeout=asked.timeout),
        allow_unjudged=asked.allow_unjudged,
    )
    report(judge_api.estimate_by_api(reference, models, settings, cache))
    facts = []
    for records, path in zip(models, out, strict=True):
        judged = judge_api.judge_by_api(reference, records, settings, cache)
        write_annotations(path, judged.annotations)
        cost = round(judged.cost, 4)
        facts.append(
            {"requests": judged.requests, "cached": judged.cached, "dollars": cost, "unjudged": judged.unjudged}
        )
    return facts


def _by_reward(
    judge: Mapping[str, Any],
    folder: Path | None,
    table: pa.Table,
    reference: Sequence[Record],
    models: Sequence[Sequence[Record]],
    out: Sequence[Path],
    name: str,
) -> list[dict[str, Any]]:
    from shallow_signals.evaluation.judges import judge_by_reward, known_scores
    from shallow_signals.evaluation.rewards import rewards

    sides = [reference, *models]
    prompts = table["prompt"].to_pylist() * len(sides)
    found = rewards(judge, folder, prompts, [record["output"] for side in sides for record in side])
    scores = found.reshape(len(sides), len(table))
    score = known_scores(list(zip(sides, scores.tolist(), strict=True)))
    for records, path in zip(models, out, strict=True):
        write_annotations(path, judge_by_reward(reference, records, score, name, soft=judge["kind"] == "model"))
    return [{"mean_reward": float(own.mean()), "reference_reward": float(scores[0].mean())} for own in scores[1:]]
