# Small rules that go wrong, with the workflow's own helpers for their resources; run by the real profile.


configfile: "config.yaml"
configfile: "micro.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/experiments.smk"


onstart:
    before_start()


rule fine:
    output:
        "fine.txt",
    resources:
        runtime=minutes_for(5),
    shell:
        "touch {output}"


rule broken:
    output:
        "broken.txt",
    log:
        "logs/drills/broken.log",
    resources:
        runtime=minutes_for(5),
    shell:
        "echo the reason why > {log}; exit 3"


rule too_slow:
    """Longer than its first minute; its second attempt has two."""
    output:
        "too_slow.txt",
    resources:
        mem_mb=memory_for(600),
        runtime=minutes_for(1),
    shell:
        "test {resources.runtime} -gt 1 || sleep 300; echo {resources.runtime} {resources.mem_mb} > {output}"


rule cancelled:
    """Cancelled by hand while it runs; its second attempt has more memory and is through at once."""
    output:
        "cancelled.txt",
    resources:
        mem_mb=memory_for(700),
        runtime=minutes_for(10),
    shell:
        "test {resources.mem_mb} -gt 700 || sleep 600; touch {output}"


rule on_bad_node:
    """Waits for a sign, on a node that is taken away meanwhile."""
    output:
        "on_bad_node.txt",
    resources:
        **gpus(8),
        mem_mb=memory_for(100, gpus=8),
        runtime=minutes_for(20),
    shell:
        "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES >> nodes.txt;"
        " while [ ! -e go ]; do sleep 0.5; done; touch {output}"


rule after_drain:
    """Asks for the same kind of node once the first is drained."""
    output:
        "after_drain.txt",
    resources:
        **gpus(8),
        runtime=minutes_for(5),
    shell:
        "echo $SLURMD_NODENAME > {output}"


rule two_nodes:
    """The two-node form of README.md: one launcher a node, each with all GPUs of its node."""
    output:
        "two_nodes.txt",
    resources:
        **gpus(8),
        mem_mb=1000,
        runtime=minutes_for(5),
    shell:
        "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=4"
        " bash -c 'echo $SLURM_PROCID $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES' > {output}"


rule journal:
    """Writes one output from its beginning to its end, and says so."""
    output:
        "journal.txt",
    resources:
        runtime=minutes_for(20),
    shell:
        "echo begin $SLURM_JOB_ID $(date +%s.%N) >> journal.log;"
        " while [ ! -e finish ]; do sleep 0.5; done;"
        " echo end $SLURM_JOB_ID $(date +%s.%N) >> journal.log; touch {output}"
