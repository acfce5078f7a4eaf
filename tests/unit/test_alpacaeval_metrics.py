"""AlpacaEval's files, local judges and win rates, against the published leaderboard and worlds with a known answer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from shallow_signals.config.statistics import Statistics
from shallow_signals.evaluation.alpaca_files import check_instructions, read_outputs, write_outputs
from shallow_signals.evaluation.alpacaeval import win_rate
from shallow_signals.evaluation.length_control import (
    GlmWeights,
    fit_glm,
    lc_from_weights,
    length_controlled,
    length_overlap,
    read_weights,
)
from shallow_signals.evaluation.regulariser import (
    official_regulariser,
    read_difficulties,
    standin_regulariser,
)
from shallow_signals.files import InputError

CHECK = "alpacaeval_leaderboard_check"
QUICK = Statistics(resamples=500)
Floats = NDArray[np.float64]


def expected(shared_data: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(shared_data / CHECK / name, index_col="model")


def annotations(shared_data: Path, name: str = "dev_annotations.parquet") -> dict[str, pd.DataFrame]:
    table = pd.read_parquet(shared_data / CHECK / name).assign(annotator="gpt-4-1106-preview")
    return {str(model): rows.reset_index(drop=True) for model, rows in table.groupby("model")}


@pytest.fixture(scope="module")
def difficulties(shared_data: Path) -> Floats:
    """Estimated difficulties in the order of the annotations."""
    instructions = annotations(shared_data)["claude-2"]["instruction"]
    return read_difficulties(shared_data / CHECK / "instruction_difficulty_estimated.csv", list(instructions))


def test_win_rates_are_the_published_ones(shared_data: Path) -> None:
    for name in ("dev", "adversarial_extra"):
        published = expected(shared_data, f"{name}_expected.csv")
        frames = annotations(shared_data, f"{name}_annotations.parquet")
        assert set(frames) == set(published.index)
        for model, frame in frames.items():
            ours, row = win_rate(frame, QUICK), published.loc[model]
            assert abs(ours.win_rate.value - row["win_rate"]) < 1e-6
            assert abs(ours.standard_error - row["standard_error"]) < 1e-6
            assert abs(ours.discrete_win_rate - row["discrete_win_rate"]) < 1e-6
            assert (ours.wins, ours.losses, ours.draws, ours.n) == tuple(
                row[["n_wins", "n_wins_base", "n_draws", "n_total"]]
            )
            # 805 rows, one per instruction: the bootstrap is close to the normal interval.
            half = (ours.win_rate.high - ours.win_rate.low) / 2
            assert half == pytest.approx(1.96 * row["standard_error"], rel=0.2)


def test_lc_from_published_weights(shared_data: Path, difficulties: Floats) -> None:
    weights = read_weights(shared_data / CHECK / "glm_weights_baseline_gpt4_1106_preview.csv")
    errors, without = [], []
    for name in ("dev", "adversarial_extra"):
        for model, row in expected(shared_data, f"{name}_expected.csv").iterrows():
            value = row["length_controlled_winrate"]
            errors.append(abs(lc_from_weights(weights[str(model)], difficulties) - value))
            without.append(abs(lc_from_weights(weights[str(model)], np.zeros(805)) - value))
    assert len(errors) == 8 and max(errors) < 0.15
    assert min(without) > 0.15  # control: the bar sees the difficulties


def test_glm_with_standin_regulariser(shared_data: Path, difficulties: Floats) -> None:
    """The package's own fit, within two points of the published LC win rates."""
    regulariser, blind = standin_regulariser(difficulties), standin_regulariser(np.zeros(805))
    errors, without = {}, {}
    for name in ("dev", "adversarial_extra"):
        published = expected(shared_data, f"{name}_expected.csv")["length_controlled_winrate"]
        for model, frame in annotations(shared_data, f"{name}_annotations.parquet").items():
            fit = fit_glm(frame, regulariser)
            assert fit.converged and fit.weights.length < 0 < fit.weights.difficulty
            errors[model] = fit.value - published[model]
            without[model] = fit_glm(frame, blind).value - published[model]
    print({model: round(float(error), 2) for model, error in errors.items()})
    assert max(map(abs, errors.values())) < 2
    assert max(map(abs, without.values())) > 4  # control: without difficulties the bar is missed


def test_adversarial_outputs_show_in_the_diagnostics(shared_data: Path, difficulties: Floats) -> None:
    """A constant text (NullModel) and one-line answers (gpt4_gamed): for the latter LC is an extrapolation."""
    frames = annotations(shared_data, "adversarial_extra_annotations.parquet")
    null, gamed = length_overlap(frames["NullModel"]), length_overlap(frames["gpt4_gamed"])
    assert gamed.one_sided and gamed.shorter > 0.95 and gamed.overlap < 0.1 and gamed.median_ratio < 0.05
    assert not null.one_sided
    null_fit = length_controlled(frames["NullModel"], standin_regulariser(difficulties), QUICK)
    assert null_fit.name == "LC win rate (stand-in regulariser)" and null_fit.approximate and null_fit.converged
    assert 80 < null_fit.estimate.low < null_fit.estimate.value < null_fit.estimate.high <= 100
    good = length_overlap(annotations(shared_data)["FuseChat-Llama-3.1-8B-Instruct"])
    assert good.overlap > 0.8 and not good.one_sided


def test_jackknife_agrees_with_a_bootstrap_of_another_fit(shared_data: Path, difficulties: Floats) -> None:
    """The interval's width against a full bootstrap of a plain maximum-likelihood logistic fit by Newton's method."""
    frame, regulariser = annotations(shared_data)["FuseChat-Llama-3.1-8B-Instruct"], standin_regulariser(difficulties)
    halves = []
    for seed in range(3):
        estimate = length_controlled(frame, regulariser, Statistics(seed=seed)).estimate
        halves.append((estimate.high - estimate.low) / 2)
    gamed = regulariser.rows
    fixed = np.c_[np.tanh(gamed["std_delta_len"]), gamed["instruction_difficulty"], np.zeros(len(gamed))]
    delta = (frame["len_1"] - frame["len_2"]).to_numpy(dtype=float)
    wins = frame["preference"].to_numpy() - 1
    generator = np.random.default_rng(3)
    values = []
    for _ in range(200):
        rows = generator.integers(0, len(frame), len(frame))
        own = np.c_[np.tanh(delta[rows] / delta[rows].std(ddof=1)), difficulties[rows], np.ones(len(rows))]
        x, y = np.r_[own, fixed], np.r_[wins[rows], gamed["preference"]]
        share = np.r_[np.ones(len(own)), np.full(len(fixed), 0.1)]  # two baselines share a weight of 0.2
        w = np.zeros(3)
        for _ in range(12):
            p = 1 / (1 + np.exp(-x @ w))
            w += np.linalg.solve((x * (share * p * (1 - p))[:, None]).T @ x, x.T @ (share * (y - p)))
        values.append(100 * float(np.mean(1 / (1 + np.exp(-own[:, 1:] @ w[1:])))))
    print(halves, 2.09 * float(np.std(values)), np.mean(values))
    assert float(np.mean(halves)) == pytest.approx(2.09 * float(np.std(values)), rel=0.25)


def length_world(n: int, gap: float, spread: float, slope: float, seed: int = 0) -> pd.DataFrame:
    """Pairs whose judge only looks at the length; the model's outputs are longer by `gap` characters on average."""
    generator = np.random.default_rng(seed)
    reference = generator.integers(400, 900, n)
    model = np.maximum(reference + np.rint(generator.normal(gap, spread, n)), 1).astype(int)
    share = 1 / (1 + np.exp(-slope * (model - reference) / max(spread, 1)))
    return pd.DataFrame(
        {
            "instruction": [f"task {i}" for i in range(n)],
            "output_1": ["x" * int(k) for k in reference],
            "output_2": ["y" * int(k) for k in model],
            "generator_1": "reference/one",
            "generator_2": "model/two",
            "annotator": "length",
            "preference": 1 + share,
        }
    )


def test_planted_length_bias_is_taken_out() -> None:
    frame = length_world(600, gap=80, spread=100, slope=1.5)
    raw, fitted = win_rate(frame, QUICK), fit_glm(frame, standin_regulariser(np.zeros(600)))
    assert raw.win_rate.low > 60 and abs(fitted.value - 50) < 3 and fitted.converged
    assert not length_overlap(frame).one_sided


def test_an_effect_that_the_penalty_takes_out_keeps_its_interval() -> None:
    """Two equal models, of which one won 44%: the package says 50.0, and 200 instructions do not say it so surely."""
    frame = length_world(200, gap=0, spread=100, slope=0.0)
    frame["preference"] = 1.0 + (np.random.default_rng(4).random(200) < 0.5)
    fitted = length_controlled(frame, standin_regulariser(np.zeros(200)), QUICK)
    raw = win_rate(frame, QUICK).win_rate
    assert fitted.weights.intercept == 0.0 and fitted.estimate.value == 50.0
    assert fitted.estimate.high - fitted.estimate.low == pytest.approx(raw.high - raw.low, rel=0.35)


def test_one_sided_lengths_are_flagged() -> None:
    """All outputs longer: the number is an extrapolation, and says so."""
    frame = length_world(200, gap=100, spread=1, slope=0.02)
    fitted = length_controlled(frame, standin_regulariser(np.zeros(200)), QUICK)
    assert fitted.lengths.one_sided and fitted.lengths.longer == 1.0


def test_no_fit_is_no_number() -> None:
    frame = length_world(60, gap=100, spread=0, slope=0.0)
    assert math.isnan(length_controlled(frame, standin_regulariser(np.zeros(60))).estimate.value)
    few = length_world(30, gap=50, spread=100, slope=1.0)
    fitted = length_controlled(few, standin_regulariser(np.zeros(30)))
    assert math.isnan(fitted.estimate.value) and "fewer than 40" in fitted.notes[0] and not fitted.converged
    with pytest.raises(InputError, match="60 rows, but the regulariser knows 61 instructions"):
        length_controlled(frame, standin_regulariser(np.zeros(61)))


def test_unjudged_rows_and_old_ties() -> None:
    frame = length_world(100, gap=20, spread=80, slope=1.0)
    frame.loc[:9, "preference"] = np.nan
    frame.loc[10:19, "preference"] = 0
    tied = frame.assign(preference=frame["preference"].replace(0, 1.5))
    rate = win_rate(frame, QUICK)
    assert (rate.unjudged, rate.draws, rate.n) == (10, 10, 90)
    assert rate.win_rate.value == pytest.approx(100 * float(np.nanmean(tied["preference"] - 1)))
    fitted = length_controlled(frame, standin_regulariser(np.zeros(100)), QUICK).estimate
    assert fitted.value == fit_glm(tied, standin_regulariser(np.zeros(100))).value and fitted.n == 90
    with pytest.raises(InputError, match=r"row 3: preference 2\.5"):
        win_rate(frame.assign(preference=[1, 1, 1, 2.5] + [1] * 96))
    with pytest.raises(InputError, match="no row has a preference"):
        win_rate(frame.assign(preference=np.nan))


def test_official_file_gets_the_official_name(tmp_path: Path) -> None:
    """The stand-in's rows in AlpacaEval's layout, read back as df_gamed.csv: the same fit under the other name."""
    frame = length_world(120, gap=20, spread=80, slope=1.0)
    rows = standin_regulariser(np.linspace(-1, 1, 120))
    rows.rows.to_csv(tmp_path / "df_gamed.csv", index=False)
    official = length_controlled(frame, official_regulariser(tmp_path / "df_gamed.csv"), QUICK)
    assert (official.name, official.approximate) == ("LC win rate", False)
    assert official.estimate.value == pytest.approx(fit_glm(frame, rows).value, abs=1e-6)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"other\.csv: no column preference"):
        official_regulariser(tmp_path / "other.csv")


def test_difficulties_join_by_text_or_by_order(tmp_path: Path) -> None:
    (tmp_path / "text.csv").write_text("instruction,difficulty_estimated\nNA,1.5\nb,-2\n")
    assert read_difficulties(tmp_path / "text.csv", ["b", "NA"]).tolist() == [-2, 1.5]
    with pytest.raises(InputError, match="no difficulty for 1 instructions, first 'c'"):
        read_difficulties(tmp_path / "text.csv", ["b", "c"])
    (tmp_path / "order.csv").write_text(",instruction_difficulty\n0,3\n1,4\n")
    assert read_difficulties(tmp_path / "order.csv", ["x", "y"]).tolist() == [3, 4]
    with pytest.raises(InputError, match="2 difficulties for 1 instructions"):
        read_difficulties(tmp_path / "order.csv", ["x"])


def test_lc_formula_by_hand() -> None:
    assert lc_from_weights(GlmWeights(-5.0, 0.0, math.log(3)), [1.0, 9.0]) == pytest.approx(75)
    assert lc_from_weights(GlmWeights(-5.0, 2.0, 0.0), [1.5, -1.5]) == pytest.approx(50)


def test_length_overlap_by_hand() -> None:
    frame = pd.DataFrame({"output_1": ["ab", "abcd", "abcdef", "x"], "output_2": ["abc", "abc", "abcdef", "xyz"]})
    overlap = length_overlap(frame)
    assert (overlap.longer, overlap.shorter, overlap.equal) == (0.5, 0.25, 0.25)
    assert overlap.overlap == pytest.approx(0.5)  # at length 2: half of the references, none of the model's
    assert overlap.median_ratio == pytest.approx(1.0)


def outputs(texts: list[str], generator: str) -> list[dict[str, Any]]:
    return [
        {"instruction": f"task {i}", "output": text, "generator": generator, "dataset": "world"}
        for i, text in enumerate(texts)
    ]


def test_local_judge() -> None:
    from shallow_signals.evaluation.judges import judge_by_reward, known_scores

    reference, model = outputs(["1", "2", "3", "5"], "ref"), outputs(["2", "1", "3.0", "5"], "policy")
    calls: list[tuple[str, str]] = []

    def score(instruction: str, output: str) -> float:
        calls.append((instruction, output))
        return float(output)

    hard = judge_by_reward(reference, model, score, "true reward")
    assert hard["preference"].tolist() == [2, 1, 1.5, 1.5] and set(hard["annotator"]) == {"true reward"}
    assert list(hard.columns) == [
        "instruction", "output_1", "output_2", "generator_1", "generator_2", "annotator", "preference",
    ]  # fmt: skip
    assert hard["output_2"].tolist() == ["2", "1", "3.0", "5"] and set(hard["generator_2"]) == {"policy"}
    assert len(calls) == len(set(calls)) == 6  # each output once; equal texts are a tie without scoring
    batched = known_scores([(reference, [1, 2, 3, 5]), (model, [2, 1, 3, 5])])
    soft = judge_by_reward(reference, model, batched, "true reward", soft=True)
    sigmoid = 1 / (1 + math.exp(-1))
    assert soft["preference"].tolist() == pytest.approx([1 + sigmoid, 2 - sigmoid, 1.5, 1.5])
    assert win_rate(hard).win_rate.value == 50
    same = judge_by_reward(reference, reference, score, "true reward")
    assert same["preference"].tolist() == [1.5] * 4
    extreme = judge_by_reward(outputs(["-1e4"], "r"), outputs(["1e4"], "p"), score, "x", soft=True)
    assert extreme["preference"].tolist() == [2]
    with pytest.raises(InputError, match="score nan"):
        judge_by_reward(reference, model, lambda instruction, output: math.nan, "broken")
    with pytest.raises(InputError, match="score all outputs first"):
        judge_by_reward(reference, model, known_scores([(reference, [1, 2, 3, 5])]), "half")


def test_output_files(tmp_path: Path) -> None:
    reference, model = outputs(["a", "b"], "ref"), outputs(["", "“é”\u2028\n"], "policy")
    path = tmp_path / "model_outputs.json"
    write_outputs(path, model, reference)
    assert read_outputs(path) == model
    assert pd.read_json(path)["output"].tolist() == ["", "“é”\u2028\n"]  # as the package reads it
    with pytest.raises(InputError, match="1 outputs for the reference's 2 instructions"):
        check_instructions(model[:1], reference, "x")
    with pytest.raises(InputError, match=r"row 0: instruction 'task 1' where the reference has 'task 0'"):
        write_outputs(path, model[::-1], reference)
    bad: list[tuple[Any, str]] = [
        ([], "at least one output"),
        ({"instruction": "a"}, "expected a list"),
        ([{"instruction": "a", "generator": "g"}], "row 0: 'output' must be a string"),
        ([*model, {**model[0], "generator": "other"}], "outputs of 2 generators"),
    ]
    for records, message in bad:
        with pytest.raises(InputError, match=message):
            write_outputs(path, records)
    path.write_text('[{"instruction": ')
    with pytest.raises(InputError, match=r"model_outputs\.json: not readable as JSON"):
        read_outputs(path)
    with pytest.raises(InputError, match="no such file"):
        read_outputs(tmp_path / "none.json")
