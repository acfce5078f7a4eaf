"""Draw accuracy by cut from its table."""

from job import job

with job(snakemake):
    from pathlib import Path

    from shallow_signals.paper.cut_figure import draw_reward_by_cut

    draw_reward_by_cut(Path(snakemake.input.csv), [Path(path) for path in snakemake.output])
