# Tables, figures and checks: arithmetic on per-row scores, nothing else.
#
# Needs: evaluations/reward/**.parquet.
# Makes: tables/{table}.csv, .md, .tex; figures/reward_by_cut.csv, .png, .pdf; checks/{check}.csv


def table_params(table):
    """What a table shows: experiments in order, their labels, truncations and seeds, and the benchmark's rules."""
    rows = []
    for name in getattr(STUDY.tables, table):
        spec = STUDY.reward_models[name]
        rows.append(
            {
                "experiment": name,
                "label": STUDY.datasets[spec.dataset].label,
                "seeds": {t: spec.seeds_of(t) for t in spec.truncations},
                "benchmarks": {b: STUDY.benchmarks[b].rules for b in spec.benchmarks},
                "heldout": spec.heldout,
            }
        )
    return rows


def best_possible(table):
    """The planted sources behind a table's experiments, for the column of what is at best possible."""
    sources = {name: STUDY.datasets[STUDY.reward_models[name].dataset].source for name in getattr(STUDY.tables, table)}
    return {name: plain(source) for name, source in sources.items() if source.kind == "planted"}


rule make_table:
    """One table as CSV, Markdown and LaTeX."""
    input:
        scores=lambda w: scores_of(getattr(STUDY.tables, w.table)),
        code=code("paper.tables", "paper.render"),
    output:
        csv=report(
            results("tables/{table}.csv"),
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
        md=results("tables/{table}.md"),
        tex=results("tables/{table}.tex"),
    wildcard_constraints:
        table="table1|table2|table4|controls",
    log:
        log_of("make_table/{table}"),
    params:
        rows=lambda w: table_params(w.table),
        planted=lambda w: best_possible(w.table),
        statistics=plain(STUDY.statistics),
    conda:
        "../../envs/core.yaml"
    script:
        "../scripts/make_table.py"


rule gather_reward_by_cut:
    """Accuracy of every reward model at every cut of the held-out responses."""
    input:
        scores=scores_of(reward_experiments()),
        code=code("evaluation.accuracy"),
    output:
        csv=results("figures/reward_by_cut.csv"),
    log:
        log_of("gather_reward_by_cut"),
    params:
        rows=[
            {
                "experiment": e,
                "label": STUDY.datasets[STUDY.reward_models[e].dataset].label,
                "seeds": {t: STUDY.reward_models[e].seeds_of(t) for t in STUDY.reward_models[e].truncations},
                "tests": tests_of(e),
            }
            for e in reward_experiments()
        ],
        statistics=plain(STUDY.statistics),
    conda:
        "../../envs/core.yaml"
    script:
        "../scripts/gather_reward_by_cut.py"


rule draw_reward_by_cut:
    """Accuracy by cut, from its table alone."""
    input:
        csv=results("figures/reward_by_cut.csv"),
        code=code("paper.cut_figure"),
    output:
        png=report(
            results("figures/reward_by_cut.png"),
            caption="../report/reward_by_cut.rst",
            category="Figures",
            labels={"figure": "reward by cut"},
        ),
        pdf=results("figures/reward_by_cut.pdf"),
    log:
        log_of("draw_reward_by_cut"),
    conda:
        "../../envs/core.yaml"
    script:
        "../scripts/draw_reward_by_cut.py"


rule check_planted:
    """The reward models of the planted world against what the world allows; fails when an instrument lies."""
    input:
        scores=scores_of(reward_experiments()),
        code=code("evaluation.checks"),
    output:
        csv=results("checks/{check}.csv"),
    wildcard_constraints:
        check="planted|shuffled",
    log:
        log_of("checks/{check}"),
    params:
        rows=lambda w: [row for table in ("table1", "table2", "table4", "controls") for row in table_params(table)],
        planted=lambda w: {
            name: source
            for table in ("table1", "table2", "table4", "controls")
            for name, source in best_possible(table).items()
        },
        statistics=plain(STUDY.statistics),
    conda:
        "../../envs/core.yaml"
    script:
        "../scripts/run_check.py"


rule table1:
    """RewardBench accuracy of reward models on three data sets."""
    input:
        multiext(results("tables/table1"), ".csv", ".md", ".tex"),


rule table2:
    """Test accuracy by aspect."""
    input:
        multiext(results("tables/table2"), ".csv", ".md", ".tex"),


rule table4:
    """RewardBench accuracy of reward models on human-written responses."""
    input:
        multiext(results("tables/table4"), ".csv", ".md", ".tex"),


rule tables:
    """Every table of this run."""
    input:
        [path for path in targets() if "/tables/" in path],
