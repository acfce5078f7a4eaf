"""Answer a set of instructions with several models, one after the other."""

from job import job

with job(snakemake):
    from pathlib import Path

    from shallow_signals.evaluation.generate import generate_outputs
    from shallow_signals.files import write_json
    from shallow_signals.provenance import content_hash, sidecar
    from shallow_signals.states import forget_states, state_folder

    instructions = Path(snakemake.input.instructions)
    gpus = max(1, snakemake.resources.get("gpu", 1))
    states = []
    members = zip(snakemake.params.members, snakemake.input.models, snakemake.output, strict=True)
    for params, model, output in members:
        out = Path(output)
        hashes = {"instructions": content_hash(instructions), "model": content_hash(Path(model))}
        states.append(state_folder(out, params, hashes))
        facts = generate_outputs(Path(model), instructions, out, states[-1], gpus=gpus, **params)
        write_json(out.with_suffix(".meta.json"), sidecar(params, hashes, **facts))
    for state in states:  # only now: when one member fails, the outputs of the others are removed, too
        forget_states(state)
