# A policy and its reference decoded together: KL by position (Figure 3) and reward against KL (Figure 4).
#
# Needs: data/instructions/{instructions}.parquet, models/base/, models/dpo/, data/{dataset}/tokens/{model}.parquet.
# Makes: decoding/{decoding}/responses.parquet, texts.parquet, retrained/{experiment}.parquet, each with .meta.json
#        decoding/{decoding}/rewards/{run}.parquet (run: responses, or the experiment of a policy trained again)
#        figures/figure3.*, figures/figure4.*, tables/dominance.*, checks/kl.csv


rule decode:
    """Responses of every strategy at every parameter, with both models' exact KL at each token."""
    input:
        policy=lambda w: decoding_policy(w.decoding),
        reference=lambda w: results(f"models/base/{decoding_base(w.decoding)}"),
        instructions=lambda w: results(f"data/instructions/{STUDY.decoding[w.decoding].instructions}.parquet"),
        code=code("decoding.runs", script="decode"),
    output:
        responses=results("decoding/{decoding}/responses.parquet"),
        facts=results("decoding/{decoding}/responses.meta.json"),
    log:
        log_of("decode/{decoding}"),
    benchmark:
        benchmark_of("decode/{decoding}")
    conda:
        "../../envs/core.yaml"
    resources:
        **gpus(1),
        mem_mb=memory_for(64000),
        runtime=minutes_for(60, "decoding/{decoding}/responses.parquet"),
    params:
        run=lambda w: decoding_params(w.decoding),
    script:
        "../scripts/decode.py"


rule decode_retrained:
    """Samples of a policy trained at another beta, against the same reference: what mixing with a claims to be."""
    input:
        policy=lambda w: trained_policy(w.experiment),
        reference=lambda w: results(f"models/base/{decoding_base(w.decoding)}"),
        instructions=lambda w: results(f"data/instructions/{STUDY.decoding[w.decoding].instructions}.parquet"),
        code=code("decoding.runs", script="decode"),
    output:
        responses=results("decoding/{decoding}/retrained/{experiment}.parquet"),
        facts=results("decoding/{decoding}/retrained/{experiment}.meta.json"),
    log:
        log_of("decode_retrained/{decoding}/{experiment}"),
    benchmark:
        benchmark_of("decode_retrained/{decoding}/{experiment}")
    conda:
        "../../envs/core.yaml"
    resources:
        **gpus(1),
        mem_mb=memory_for(64000),
        runtime=minutes_for(60, "decoding/{decoding}/retrained/{experiment}.parquet"),
    params:
        run=lambda w: decoding_params(w.decoding, controlled=False),
    script:
        "../scripts/decode.py"


rule read_texts:
    """KL by position on held-out responses, and where the policy goes on from their beginnings."""
    input:
        policy=lambda w: decoding_policy(w.decoding),
        reference=lambda w: results(f"models/base/{decoding_base(w.decoding)}"),
        tokens=lambda w: results(
            f"data/{STUDY.decoding[w.decoding].texts}/tokens/{decoding_base(w.decoding)}.parquet"
        ),
        code=code("decoding.runs", script="read_texts"),
    output:
        texts=results("decoding/{decoding}/texts.parquet"),
        facts=results("decoding/{decoding}/texts.meta.json"),
    log:
        log_of("read_texts/{decoding}"),
    benchmark:
        benchmark_of("read_texts/{decoding}")
    conda:
        "../../envs/core.yaml"
    resources:
        **gpus(1),
        mem_mb=memory_for(64000),
        runtime=minutes_for(60, "decoding/{decoding}/texts.parquet"),
    params:
        run=lambda w: text_params(w.decoding),
    script:
        "../scripts/read_texts.py"


rule score_decoded:
    """The reward of every response, by the decoding's judge."""
    input:
        responses=lambda w: decoded_file(w.decoding, w.run),
        instructions=lambda w: results(f"data/instructions/{STUDY.decoding[w.decoding].instructions}.parquet"),
        model=lambda w: judge_model(STUDY.decoding[w.decoding].reward),
        code=code("evaluation.rewards", script="score_decoded"),
    output:
        rewards=results("decoding/{decoding}/rewards/{run}.parquet"),
    log:
        log_of("score_decoded/{decoding}/{run}"),
    benchmark:
        benchmark_of("score_decoded/{decoding}/{run}")
    wildcard_constraints:
        run="[A-Za-z0-9_.]+",
    conda:
        "../../envs/core.yaml"
    resources:
        **gpus(1),
        mem_mb=memory_for(48000),
        runtime=minutes_for(60, "decoding/{decoding}/rewards/{run}.parquet"),
    params:
        judge=lambda w: judge_params(STUDY.decoding[w.decoding].reward),
    script:
        "../scripts/score_decoded.py"


rule gather_kl:
    """KL by position of every text of Figure 3, with intervals."""
    input:
        responses=[row["responses"] for row in kl_rows()],
        texts=[row["texts"] for row in kl_rows() if row["texts"]],
        code=code("evaluation.kl_by_position", script="gather_kl"),
    output:
        csv=results("figures/figure3.csv"),
    log:
        log_of("gather_kl"),
    conda:
        "../../envs/core.yaml"
    params:
        rows=kl_rows(),
        statistics=plain(STUDY.statistics),
    script:
        "../scripts/gather_kl.py"


rule draw_kl:
    """Figure 3, from its table alone."""
    input:
        csv=results("figures/figure3.csv"),
        code=code("paper.kl_figure", script="draw_kl"),
    output:
        png=report(
            results("figures/figure3.png"),
            caption="../report/kl.rst",
            category="Figures",
            labels={"figure": "figure3"},
        ),
        pdf=results("figures/figure3.pdf"),
    log:
        log_of("draw_kl"),
    conda:
        "../../envs/core.yaml"
    script:
        "../scripts/draw_kl.py"


rule gather_tradeoff:
    """Reward and KL of every strategy, and each control against the mixing baseline."""
    input:
        responses=[path for row in tradeoff_rows() for path in row["runs"]],
        rewards=[path for row in tradeoff_rows() for path in row["rewards"]],
        code=code("evaluation.dominance", "paper.dominance_table", script="gather_tradeoff"),
    output:
        csv=results("figures/figure4.csv"),
        dominance=report(
            results("tables/dominance.csv"),
            caption="../report/dominance.rst",
            category="Tables",
            labels={"table": "dominance"},
        ),
        md=results("tables/dominance.md"),
        tex=results("tables/dominance.tex"),
    log:
        log_of("gather_tradeoff"),
    conda:
        "../../envs/core.yaml"
    params:
        rows=tradeoff_rows(),
        statistics=plain(STUDY.statistics),
    script:
        "../scripts/gather_tradeoff.py"


rule draw_tradeoff:
    """Figure 4, from its table alone."""
    input:
        csv=results("figures/figure4.csv"),
        code=code("paper.tradeoff_figure", script="draw_tradeoff"),
    output:
        png=report(
            results("figures/figure4.png"),
            caption="../report/tradeoff.rst",
            category="Figures",
            labels={"figure": "figure4"},
        ),
        pdf=results("figures/figure4.pdf"),
    log:
        log_of("draw_tradeoff"),
    conda:
        "../../envs/core.yaml"
    script:
        "../scripts/draw_tradeoff.py"


rule check_kl:
    """KL sits where the signal was planted; fails where it does not."""
    input:
        csv=results("figures/figure3.csv"),
        code=code("evaluation.kl_check", script="check_kl"),
    output:
        csv=results("checks/kl.csv"),
    log:
        log_of("checks/kl"),
    conda:
        "../../envs/core.yaml"
    params:
        profiles=planted_decodings(),
    script:
        "../scripts/check_kl.py"


rule figure3:
    """KL between policy and reference by position."""
    input:
        multiext(results("figures/figure3"), ".csv", ".png", ".pdf"),


rule figure4:
    """Reward against KL for mixing, length control and the KL threshold."""
    input:
        multiext(results("figures/figure4"), ".csv", ".png", ".pdf"),


rule dominance:
    """Each control against the mixing baseline, point by point."""
    input:
        multiext(results("tables/dominance"), ".csv", ".md", ".tex"),
