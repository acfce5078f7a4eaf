"""Gather the accuracy of implicit rewards at every cut."""

from job import job

with job(snakemake):
    from pathlib import Path

    import pandas as pd

    from shallow_signals.config.statistics import Statistics
    from shallow_signals.config.study import ImplicitReward
    from shallow_signals.files import write_text
    from shallow_signals.signal.curves import COLUMNS, accuracy_curves, read_ratios

    found = read_ratios([Path(path) for path in snakemake.input.policies], Path(snakemake.input.reference))
    spec = ImplicitReward.model_validate(snakemake.params.implicit)
    rows = accuracy_curves(found, spec, Statistics.model_validate(snakemake.params.statistics))
    write_text(Path(snakemake.output.csv), pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False))
