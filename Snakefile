"""Where in a response does the preference signal sit? Raw preference data to every table and figure of the study."""

from snakemake.utils import min_version

min_version("9.27")


configfile: "config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/experiments.smk"
include: "workflow/rules/implicit.smk"
include: "workflow/rules/comparisons.smk"
include: "workflow/rules/decodings.smk"


onstart:
    before_start()
    keep_one_timer()


localrules:
    all,
    table1,
    table2,
    table3,
    table4,
    figure1,
    figure2,
    figure3,
    figure4,
    dominance,
    figure5,
    position,
    tables,
    probe,
    page,
    write_config,


rule all:
    default_target: True
    input:
        targets(),
        results("config.yaml"),


include: "workflow/rules/data.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/reward_model.smk"
include: "workflow/rules/rewardbench.smk"
include: "workflow/rules/dpo.smk"
include: "workflow/rules/signal.smk"
include: "workflow/rules/alpacaeval.smk"
include: "workflow/rules/decoding.smk"
include: "workflow/rules/paper.smk"
