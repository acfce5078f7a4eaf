"""Hold models against a truth that is known; fail with every line that disagrees."""

from job import job

with job(snakemake):
    from pathlib import Path

    import pyarrow.csv

    from shallow_signals.config.sources import PlantedSource
    from shallow_signals.config.statistics import Statistics
    from shallow_signals.evaluation import checks

    experiments = [
        checks.load_experiment(
            row["experiment"],
            row["scores"]["heldout"],
            PlantedSource.model_validate(row["planted"]) if row["planted"] else None,
        )
        for row in snakemake.params.rows
    ]
    settings = Statistics.model_validate(snakemake.params.statistics)
    if snakemake.wildcards.check == "planted":
        found = checks.planted_checks(experiments, settings)
    else:
        curves = zip(snakemake.params.implicit, map(Path, snakemake.input.implicit), strict=True)
        found = checks.shuffled_checks(experiments, settings) + checks.shuffled_policy_checks(dict(curves))
    table = checks.as_table(found)
    print(table.to_pandas().to_string())
    checks.require(found)
    pyarrow.csv.write_csv(table, snakemake.output.csv)
