"""Train reward models, one after the other: in this process, or on the rule's GPUs."""

from job import job

with job(snakemake):
    from pathlib import Path

    from shallow_signals.files import write_json
    from shallow_signals.provenance import content_hash, sidecar
    from shallow_signals.states import state_folder
    from shallow_signals.training.launch import RewardJob, train_reward_model

    base, settings = Path(snakemake.input.base), snakemake.params.training
    fixed = {"base": content_hash(base)}
    members = zip(snakemake.params.members, snakemake.input.shards, snakemake.output, strict=True)
    for (_, seed), shards, output in members:
        out, params = Path(output), {**settings, "seed": seed}
        hashes = {"shards": content_hash(Path(shards)), **fixed}
        task = RewardJob(**params, shards=shards, base=base, out=out, state=state_folder(out, params, hashes))
        facts = train_reward_model(task, processes=max(1, snakemake.resources.get("gpu", 1)))
        write_json(out / "training.json", sidecar(params, hashes, **facts))
