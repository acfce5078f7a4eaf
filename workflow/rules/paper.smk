# Tables, figures and checks: arithmetic on per-row scores, nothing else.
#
# Needs: evaluations/reward/**.parquet, signal/**.csv.
# Makes: tables/{table}.csv, .md, .tex; tables/verdicts.*; README.md, run.json; checks/{check}.csv
#        figures/figure1.csv, .png, .pdf, and likewise figure2, figure5, position, reward_by_cut


rule make_table:
    """One table as CSV, Markdown and LaTeX."""
    input:
        scores=lambda w: scores_of(getattr(STUDY.tables, w.table)),
        code=code("paper.build", "paper.render", script="make_table"),
    output:
        csv=report(
            results("tables/{table}.csv"),
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
        md=results("tables/{table}.md"),
        tex=results("tables/{table}.tex"),
    log:
        log_of("make_table/{table}"),
    wildcard_constraints:
        table="table1|table2|table4|controls",
    conda:
        "../../envs/core.yaml"
    params:
        rows=lambda w: shown(getattr(STUDY.tables, w.table)),
        statistics=plain(STUDY.statistics),
    script:
        "../scripts/make_table.py"


rule weigh_evidence:
    """Probe, reward models and implicit rewards side by side: early, everywhere, late, or length?"""
    input:
        evidence=evidence_inputs(),
        code=code("paper.verdicts", "paper.render", script="weigh_evidence"),
    output:
        csv=report(
            results("tables/verdicts.csv"),
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "verdicts"},
        ),
        md=results("tables/verdicts.md"),
        tex=results("tables/verdicts.tex"),
    log:
        log_of("weigh_evidence"),
    conda:
        "../../envs/core.yaml"
    params:
        evidence=evidence_rows(),
        statistics=plain(STUDY.statistics),
    script:
        "../scripts/weigh_evidence.py"


rule gather_reward_by_cut:
    """Accuracy of every reward model at every cut of the held-out responses."""
    input:
        scores=scores_of(reward_experiments()),
        code=code("evaluation.curves", script="gather_reward_by_cut"),
    output:
        csv=results("figures/reward_by_cut.csv"),
    log:
        log_of("gather_reward_by_cut"),
    conda:
        "../../envs/core.yaml"
    params:
        rows=shown(reward_experiments()),
        statistics=plain(STUDY.statistics),
    script:
        "../scripts/gather_reward_by_cut.py"


rule draw_reward_by_cut:
    """Accuracy by cut, from its table alone."""
    input:
        csv=results("figures/reward_by_cut.csv"),
        code=code("paper.cut_figure", script="draw_reward_by_cut"),
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


rule check_reward_models:
    """Models against what the planted world allows, or against one half; fails when an instrument lies."""
    input:
        scores=scores_of(reward_experiments()),
        implicit=lambda w: [results(f"signal/{i}.csv") for i in controlled(w.check)],
        code=code("evaluation.checks", script="run_check"),
    output:
        csv=results("checks/{check}.csv"),
    log:
        log_of("checks/{check}"),
    wildcard_constraints:
        check="planted|shuffled",
    conda:
        "../../envs/core.yaml"
    params:
        rows=[row for row in shown(reward_experiments()) if "heldout" in row["scores"]],
        implicit=lambda w: controlled(w.check),
        statistics=plain(STUDY.statistics),
    script:
        "../scripts/run_check.py"


rule draw_implicit_rewards:
    """Figure 2 or 5, from its tables alone."""
    input:
        tables=lambda w: [results(f"signal/{i}.csv") for i in getattr(STUDY.figures, w.figure)],
        code=code("paper.implicit_figure", "paper.gather", script="draw_implicit_rewards"),
    output:
        csv=results("figures/{figure}.csv"),
        png=report(
            results("figures/{figure}.png"),
            caption="../report/implicit.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
        pdf=results("figures/{figure}.pdf"),
    log:
        log_of("draw_implicit_rewards/{figure}"),
    wildcard_constraints:
        figure="figure2|figure5",
    conda:
        "../../envs/core.yaml"
    params:
        labels=lambda w: [implicit_label(i) for i in getattr(STUDY.figures, w.figure)],
    script:
        "../scripts/draw_implicit_rewards.py"


rule draw_examples:
    """Figure 1, from its tables alone."""
    input:
        tables=[results(f"signal/{i}/examples.csv") for i in STUDY.figures.figure1],
        code=code("paper.example_figure", "paper.gather", script="draw_examples"),
    output:
        csv=results("figures/figure1.csv"),
        png=report(
            results("figures/figure1.png"),
            caption="../report/examples.rst",
            category="Figures",
            labels={"figure": "figure1"},
        ),
        pdf=results("figures/figure1.pdf"),
    log:
        log_of("draw_examples"),
    conda:
        "../../envs/core.yaml"
    params:
        labels=[implicit_label(i) for i in STUDY.figures.figure1],
    script:
        "../scripts/draw_examples.py"


rule draw_position:
    """The signal by position, from its tables alone."""
    input:
        positions=[results(f"signal/{i}/position.csv") for i in STUDY.figures.position],
        ranks=[results(f"signal/{i}/ranks.csv") for i in STUDY.figures.position],
        code=code("paper.position_figure", "paper.gather", script="draw_position"),
    output:
        csv=results("figures/position.csv"),
        png=report(
            results("figures/position.png"),
            caption="../report/position.rst",
            category="Figures",
            labels={"figure": "position"},
        ),
        pdf=results("figures/position.pdf"),
    log:
        log_of("draw_position"),
    conda:
        "../../envs/core.yaml"
    params:
        labels=[implicit_label(i) for i in STUDY.figures.position],
    script:
        "../scripts/draw_position.py"


rule figure1:
    """Example pairs, their tokens shaded by what the policy adds to the reference."""
    input:
        multiext(results("figures/figure1"), ".csv", ".png", ".pdf"),


rule figure2:
    """Accuracy of DPO implicit rewards by the part of a response that is read."""
    input:
        multiext(results("figures/figure2"), ".csv", ".png", ".pdf"),


rule figure5:
    """The same on responses that people wrote."""
    input:
        multiext(results("figures/figure5"), ".csv", ".png", ".pdf"),


rule write_page:
    """The results page: every table and figure with a reading of it, and where they come from."""
    input:
        shown=shown_results(),
        code=code("paper.page", "paper.run_facts", script="write_page"),
    output:
        page=results("README.md"),
        facts=results("run.json"),
    log:
        log_of("write_page"),
    conda:
        "../../envs/core.yaml"
    params:
        run=STUDY.run,
        page=page_params(),
    script:
        "../scripts/write_page.py"


rule page:
    """The results page."""
    input:
        results("README.md"),


rule position:
    """The signal by position."""
    input:
        multiext(results("figures/position"), ".csv", ".png", ".pdf"),


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
