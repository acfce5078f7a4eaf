"""Answer a set of instructions with a policy and its reference decoded together."""

from job import job

with job(snakemake):
    from pathlib import Path

    import torch

    from shallow_signals.decoding.runs import decode
    from shallow_signals.files import write_json
    from shallow_signals.provenance import content_hash, sidecar
    from shallow_signals.states import state_folder

    torch.set_num_threads(snakemake.threads)
    paths = {name: Path(snakemake.input[name]) for name in ("policy", "reference", "instructions")}
    hashes = {name: content_hash(path) for name, path in paths.items()}
    out, params = Path(snakemake.output.responses), snakemake.params.run
    facts = decode(**paths, out=out, state=state_folder(out, params, hashes), **params)
    write_json(Path(snakemake.output.facts), sidecar(params, hashes, **facts))
