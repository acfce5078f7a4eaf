"""Where in a response does the preference signal sit? Raw preference data to every table and figure of the study."""

from snakemake.utils import min_version

min_version("9.27")


configfile: "config.yaml"


include: "workflow/rules/common.smk"


onstart:
    before_start()


localrules:
    all,
    table1,
    table2,
    table4,
    tables,
    probe,
    write_config,


rule all:
    input:
        targets(),
        results("config.yaml"),
    default_target: True


include: "workflow/rules/data.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/reward_model.smk"
include: "workflow/rules/rewardbench.smk"
include: "workflow/rules/signal.smk"
include: "workflow/rules/paper.smk"
