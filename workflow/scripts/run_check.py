"""Hold the planted world's reward models against its truth; fail with every line that disagrees."""

from job import job

with job(snakemake):
    import pyarrow.csv

    from shallow_signals.config.sources import PlantedSource
    from shallow_signals.config.statistics import Statistics
    from shallow_signals.evaluation import checks

    experiments = [
        checks.load_experiment(
            row["experiment"], PlantedSource.model_validate(row["planted"]), row["scores"]["heldout"]
        )
        for row in snakemake.params.rows
    ]
    run = {"planted": checks.planted_checks, "shuffled": checks.shuffled_checks}[snakemake.wildcards.check]
    found = run(experiments, Statistics.model_validate(snakemake.params.statistics))
    table = checks.as_table(found)
    print(table.to_pandas().to_string())
    checks.require(found)
    pyarrow.csv.write_csv(table, snakemake.output.csv)
