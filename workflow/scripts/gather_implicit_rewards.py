"""Gather the accuracy of implicit rewards at every cut."""

from job import job

with job(snakemake):
    from pathlib import Path

    import pandas as pd

    from shallow_signals.config.implicit import ImplicitReward
    from shallow_signals.config.statistics import Statistics
    from shallow_signals.files import write_text
    from shallow_signals.signal.curves import COLUMNS, accuracy_curves
    from shallow_signals.signal.ratios import read_ratios

    policies, *halves = (list(map(Path, snakemake.input.get(name))) for name in ("policies", "half1", "half2"))
    spec = ImplicitReward.model_validate(snakemake.params.implicit)
    tokens, reference = Path(snakemake.input.tokens), Path(snakemake.input.reference)
    read = read_ratios([*policies, *halves[0], *halves[1]], reference, tokens, spec.part)
    found, first, second = read.split(len(policies), len(halves[0]))
    settings = Statistics.model_validate(snakemake.params.statistics)
    rows = accuracy_curves(found, spec, settings, (first, second) if halves[0] else None)
    write_text(Path(snakemake.output.csv), pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False))
