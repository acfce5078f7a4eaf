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

    policies, first_half, second_half, shuffled = (
        list(map(Path, snakemake.input.get(name))) for name in ("policies", "half1", "half2", "shuffled")
    )
    spec = ImplicitReward.model_validate(snakemake.params.implicit)
    tokens, reference = Path(snakemake.input.tokens), Path(snakemake.input.reference)
    read = read_ratios([*policies, *first_half, *second_half, *shuffled], reference, tokens, spec.part)
    found, first, second, shuffles = read.split(len(policies), len(first_half), len(second_half))
    settings = Statistics.model_validate(snakemake.params.statistics)
    rows = accuracy_curves(
        found, spec, settings, (first, second) if first_half else None, shuffles if shuffled else None
    )
    write_text(Path(snakemake.output.csv), pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False))
