# Where the signal sits, before any model is trained: the probe.
#
# Needs: data/{dataset}/pairs.parquet.
# Makes: probe/{probe}.csv, .json (its verdict), .png, .pdf


rule run_probe:
    """A linear n-gram Bradley-Terry model on heads, tails and windows, cross-validated by group."""
    input:
        pairs=lambda w: results(f"data/{STUDY.probes[w.probe].dataset}/pairs.parquet"),
        code=code("signal.probe"),
    output:
        csv=results("probe/{probe}.csv"),
        summary=results("probe/{probe}.json"),
    log:
        log_of("run_probe/{probe}"),
    benchmark:
        benchmark_of("run_probe/{probe}")
    conda:
        "../../envs/core.yaml"
    resources:
        mem_mb=resources_for(8000),
        runtime=resources_for(120),
    params:
        probe=lambda w: plain(STUDY.probes[w.probe]),
        statistics=plain(STUDY.statistics),
    script:
        "../scripts/run_probe.py"


rule draw_probe:
    """The probe's figure, from its table alone."""
    input:
        csv=results("probe/{probe}.csv"),
        summary=results("probe/{probe}.json"),
        code=code("paper.probe_figure"),
    output:
        png=report(
            results("probe/{probe}.png"),
            caption="../report/probe.rst",
            category="Probe",
            labels={"data set": "{probe}"},
        ),
        pdf=results("probe/{probe}.pdf"),
    log:
        log_of("draw_probe/{probe}"),
    conda:
        "../../envs/core.yaml"
    params:
        label=lambda w: STUDY.datasets[STUDY.probes[w.probe].dataset].label,
    script:
        "../scripts/draw_probe.py"


rule probe:
    """All probes of this run."""
    input:
        [results(f"probe/{name}.{suffix}") for name in STUDY.probe for suffix in ("csv", "png", "pdf")],
