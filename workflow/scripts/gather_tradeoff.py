"""Gather reward and KL of every strategy, and compare the controls with the mixing baseline."""

from job import job

with job(snakemake):
    from pathlib import Path

    import pandas as pd

    from shallow_signals.config.statistics import Statistics
    from shallow_signals.evaluation.tradeoff import against_mixing, points, read_run
    from shallow_signals.files import write_text
    from shallow_signals.paper.render import write_table
    from shallow_signals.paper.tradeoff_figure import dominance_table, point_row

    settings = Statistics.model_validate(snakemake.params.statistics)
    rows, found = [], {}
    for row in snakemake.params.rows:
        runs = [read_run(*map(Path, pair)) for pair in zip(row["runs"], row["rewards"], strict=True)]
        for point in points(runs[0], settings):
            rows.append(point_row(row["label"], point.strategy.kind, point.strategy.parameter, point))
        for again, effective in zip(runs[1:], row["effective"], strict=True):
            rows.append(point_row(row["label"], "retrained", effective, points(again, settings)[0]))
        found[row["label"]] = against_mixing(runs[0], settings)
    write_text(Path(snakemake.output.csv), pd.DataFrame(rows).to_csv(index=False))
    write_table(dominance_table(found, settings), Path(snakemake.output.dominance).with_suffix(""))
