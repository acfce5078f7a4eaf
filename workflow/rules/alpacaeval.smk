# Answers of the base model and of DPO policies to a set of instructions, judged against a reference (Table 3).
#
# Needs: data/instructions/{instructions}.parquet, models/base/{model}/, models/dpo/{experiment}/{truncation}/seed{seed}/.
# Makes: alpacaeval/{comparison}/{member}/model_outputs.json, annotations.json, both in AlpacaEval's format (+ .meta.json)
#        alpacaeval/{comparison}/length_control/{part}.csv (AlpacaEval's files, where the configuration names them)
#        tables/table3.csv, .md, .tex
#
# A member is `base`, a truncation, or `reference`: the base model's other sample that all are compared with, where that
# is not stored with the instructions. An API's answers are kept in judge_cache/{comparison}.jsonl, which nothing wipes.


if STUDY.process_per == "model":

    rule generate_outputs:
        """One model's answers to every instruction."""
        input:
            instructions=lambda w: results(
                f"data/instructions/{STUDY.alpacaeval[w.comparison].instructions}.parquet"
            ),
            models=lambda w: [answering_model(w.comparison, w.member)],
            code=code("evaluation.generate", "states", script="generate_outputs"),
        output:
            outputs=results("alpacaeval/{comparison}/{member}/model_outputs.json"),
        log:
            log_of("generate_outputs/{comparison}/{member}"),
        benchmark:
            benchmark_of("generate_outputs/{comparison}/{member}")
        conda:
            lambda w: generation_environment(w.comparison)
        resources:
            **gpus(1),
            mem_mb=memory_for(64000),
            runtime=minutes_for(120, "alpacaeval/{comparison}/{member}/model_outputs.json"),
        params:
            members=lambda w: [generation_params(w.comparison, w.member)],
        script:
            "../scripts/generate_outputs.py"

else:
    for _c in comparisons():

        rule:
            name:
                f"generate_outputs_{_c}"
            input:
                instructions=results(f"data/instructions/{STUDY.alpacaeval[_c].instructions}.parquet"),
                models=[answering_model(_c, m) for m in answering(_c)],
                code=code("evaluation.generate", "states", script="generate_outputs"),
            output:
                outputs=[outputs_of(_c, m) for m in answering(_c)],
            log:
                log_of(f"generate_outputs/{_c}"),
            benchmark:
                benchmark_of(f"generate_outputs/{_c}")
            conda:
                generation_environment(_c)
            resources:
                **gpus(1),
                mem_mb=memory_for(4000),
                runtime=minutes_for(60),
            params:
                members=[generation_params(_c, m) for m in answering(_c)],
            script:
                "../scripts/generate_outputs.py"


rule fetch_length_control:
    """One file of AlpacaEval's length control, checked against the instructions before anything is paid for."""
    input:
        instructions=lambda w: results(
            f"data/instructions/{STUDY.alpacaeval[w.comparison].instructions}.parquet"
        ),
        source=length_control_source,
        code=code("evaluation.regulariser", "data.hub", script="fetch_length_control"),
    output:
        csv=results("alpacaeval/{comparison}/length_control/{part}.csv"),
    log:
        log_of("fetch_length_control/{comparison}/{part}"),
    wildcard_constraints:
        part="gamed|difficulty",
    conda:
        "../../envs/core.yaml"
    resources:
        mem_mb=memory_for(4000),
        runtime=minutes_for(30),
    params:
        length_control=lambda w: plain(STUDY.alpacaeval[w.comparison].length_control),
        data_root=lambda w: STUDY.data_root,
        pins=lambda w: pins_of(STUDY.alpacaeval[w.comparison].length_control),
    script:
        "../scripts/fetch_length_control.py"


for _c in comparisons():

    rule:
        """Every member's answers against the reference's: one job a comparison, so that one cache serves it."""
        name:
            f"judge_outputs_{_c}"
        input:
            instructions=results(f"data/instructions/{STUDY.alpacaeval[_c].instructions}.parquet"),
            reference=compared_with(_c),
            outputs=[outputs_of(_c, m) for m in rivals(_c)],
            judge=judge_model(STUDY.alpacaeval[_c].judge),
            length_control=length_control_files(_c),
            code=code("evaluation.judging", script="judge_outputs"),
        output:
            annotations=[annotations_of(_c, m) for m in rivals(_c)],
        log:
            log_of(f"judge_outputs/{_c}"),
        benchmark:
            benchmark_of(f"judge_outputs/{_c}")
        # Compute nodes seldom reach a service, and the key stays where it was set.
        localrule: STUDY.judges[STUDY.alpacaeval[_c].judge].kind == "api"
        conda:
            "../../envs/core.yaml"
        resources:
            **gpus(1 if judge_model(STUDY.alpacaeval[_c].judge) else 0),
            mem_mb=memory_for(4000 if STUDY.process_per == "experiment" else 32000),
            runtime=minutes_for(60 if STUDY.process_per == "experiment" else 480),
        params:
            judge=judge_params(STUDY.alpacaeval[_c].judge),
            name=STUDY.alpacaeval[_c].judge,
            cache=results(f"judge_cache/{_c}.jsonl"),
        script:
            "../scripts/judge_outputs.py"


rule make_table3:
    """Win rates and length-controlled win rates."""
    input:
        annotations=[annotations_of(c, m) for c in comparisons() for m in rivals(c)],
        length_control=[path for c in comparisons() for path in length_control_files(c)],
        code=code("paper.table3", "paper.render", script="make_table3"),
    output:
        csv=report(
            results("tables/table3.csv"),
            caption="../report/table3.rst",
            category="Tables",
            labels={"table": "table3"},
        ),
        md=results("tables/table3.md"),
        tex=results("tables/table3.tex"),
    log:
        log_of("make_table/table3"),
    benchmark:
        benchmark_of("make_table/table3")
    conda:
        "../../envs/core.yaml"
    params:
        comparisons=[compared(c) for c in comparisons()],
        statistics=plain(STUDY.statistics),
    script:
        "../scripts/make_table3.py"


rule check_win_rates:
    """The planted world's judge must find DPO better than its reference, and the base model as good as itself."""
    input:
        annotations=[annotations_of(c, m) for c in checked_comparisons() for m in ("base", "full")],
        code=code("evaluation.win_rate_checks", script="check_win_rates"),
    output:
        csv=results("checks/dpo.csv"),
    log:
        log_of("checks/dpo"),
    conda:
        "../../envs/core.yaml"
    params:
        comparisons=[compared(c) for c in checked_comparisons()],
    script:
        "../scripts/check_win_rates.py"


rule table3:
    """Win rates of DPO policies at every truncation."""
    input:
        multiext(results("tables/table3"), ".csv", ".md", ".tex"),
