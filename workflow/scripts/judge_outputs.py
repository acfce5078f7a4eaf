"""Judge the outputs of a comparison's models against the reference's."""

from job import job

with job(snakemake):
    import sys
    from pathlib import Path

    from shallow_signals.evaluation.judging import judge_outputs
    from shallow_signals.files import write_json
    from shallow_signals.provenance import content_hash, sidecar

    def report(line: str) -> None:
        """To the log, and to the terminal: a person may want to stop before it costs."""
        print(line)
        print(line, file=sys.__stderr__, flush=True)

    params, inputs = snakemake.params, snakemake.input
    reference = Path(inputs.reference[0]) if inputs.reference else None
    facts = judge_outputs(
        params.judge,
        Path(inputs.judge[0]) if inputs.judge else None,
        Path(inputs.instructions),
        reference,
        [Path(path) for path in inputs.outputs],
        [Path(path) for path in snakemake.output],
        name=params.name,
        cache=Path(params.cache),
        report=report,
    )
    shared = {"reference": content_hash(reference or Path(inputs.instructions))}
    for outputs, out, found in zip(inputs.outputs, snakemake.output, facts, strict=True):
        hashes = {"outputs": content_hash(Path(outputs)), **shared}
        write_json(Path(out).with_suffix(".meta.json"), sidecar({"judge": params.judge}, hashes, **found))
