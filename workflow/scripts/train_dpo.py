"""Train DPO policies, one after the other: in this process, or on the rule's GPUs."""

from job import job

with job(snakemake):
    from pathlib import Path

    from shallow_signals.files import write_json
    from shallow_signals.provenance import content_hash, sidecar
    from shallow_signals.states import state_folder
    from shallow_signals.training.launch_dpo import DPOJob, train_dpo

    settings = snakemake.params.training
    shared = {"base": Path(snakemake.input.base)}
    if snakemake.input.reference:
        shared["reference_logprobs"] = Path(snakemake.input.reference)
    fixed = {name: content_hash(path) for name, path in shared.items()}
    members = zip(snakemake.params.members, snakemake.input.shards, snakemake.output, strict=True)
    for (_, seed), shards, output in members:
        out, params = Path(output), {**settings, "seed": seed}
        hashes = {"shards": content_hash(Path(shards)), **fixed}
        task = DPOJob(**params, **shared, shards=shards, out=out, state=state_folder(out, params, hashes))
        facts = train_dpo(task, processes=max(1, snakemake.resources.get("gpu", 1)))
        write_json(out / "training.json", sidecar(params, hashes, **facts))
