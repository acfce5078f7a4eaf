"""Probe one data set."""

from job import job

with job(snakemake):
    from pathlib import Path

    from shallow_signals.config.probe import Probe
    from shallow_signals.config.statistics import Statistics
    from shallow_signals.files import read_parquet, write_json, write_text
    from shallow_signals.signal.probe import run_probe, summary

    statistics = Statistics.model_validate(snakemake.params.statistics)
    probe = Probe.model_validate(snakemake.params.probe)
    frame = run_probe(read_parquet(Path(snakemake.input.pairs)), probe, statistics)
    write_text(Path(snakemake.output.csv), frame.to_csv(index=False))
    write_json(Path(snakemake.output.summary), summary(frame, statistics.comparable_margin))
