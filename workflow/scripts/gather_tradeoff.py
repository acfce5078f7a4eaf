"""Gather reward and KL of every strategy, and compare the controls with the mixing baseline."""

from job import job

with job(snakemake):
    from pathlib import Path

    import pandas as pd

    from shallow_signals.config.statistics import Statistics
    from shallow_signals.evaluation.dominance import against_mixing, retrained_against_mixing
    from shallow_signals.evaluation.tradeoff import point_row, points, read_run
    from shallow_signals.files import write_text
    from shallow_signals.paper.dominance_table import write_dominance

    settings = Statistics.model_validate(snakemake.params.statistics)
    rows, found = [], {}
    for row in snakemake.params.rows:
        run, *others = (read_run(*map(Path, pair)) for pair in zip(row["runs"], row["rewards"], strict=True))
        for point in points(run, settings):
            rows.append(point_row(row["label"], point.strategy.kind, point.strategy.parameter, point))
        found[row["label"]] = against_mixing(run, settings)
        for (experiment, a), again in zip(row["retrained"].items(), others, strict=True):
            rows.append(point_row(row["label"], "retrained", a, points(again, settings)[0]))
            found[row["label"]] += retrained_against_mixing(experiment, a, run, again, settings)
    write_text(Path(snakemake.output.csv), pd.DataFrame(rows).to_csv(index=False))
    write_dominance(found, settings, Path(snakemake.output.dominance).with_suffix(""))
