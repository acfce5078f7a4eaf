"""Train DPO policies, one after the other: in this process, or on the rule's GPUs."""

from job import job

with job(snakemake):
    from pathlib import Path

    from shallow_signals.files import write_json
    from shallow_signals.provenance import sidecar
    from shallow_signals.training.launch_dpo import DPOJob, train_dpo
    from shallow_signals.training.resume import state_folder

    base, settings = Path(snakemake.input.base), snakemake.params.training
    reference = Path(snakemake.input.reference)
    members = zip(snakemake.params.members, snakemake.input.shards, snakemake.output, strict=True)
    for (_, seed), shards, output in members:
        out, params = Path(output), {**settings, "seed": seed}
        inputs = {"shards": Path(shards), "base": base, "reference_logprobs": reference}
        state = state_folder(out, params, inputs)
        task = DPOJob(**params, **inputs, out=out, state=state)
        facts = train_dpo(task, processes=max(1, snakemake.resources.get("gpu", 1)))
        write_json(out / "training.json", sidecar(params, inputs, **facts))
