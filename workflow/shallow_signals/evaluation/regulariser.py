"""What regularises AlpacaEval's length control: the gamed baselines' rows, official or rebuilt, and difficulties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shallow_signals.config.generation import LengthControl
from shallow_signals.data import hub
from shallow_signals.files import InputError, read_parquet, write_text

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
GAMED_COLUMNS = ["preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline", "model"]
# AlpacaEval 2.0's two gamed baselines as published: weights of length and difficulty, and the win rate.
GAMED = {
    "gpt4_1106_preview_verbose": (-1.5835274219761557, 0.8334888457867451, 0.6430360147101865),
    "gpt4_1106_preview_concise": (-1.6424856171097677, 0.6835779026468267, 0.2292019444047205),
}


@dataclass(frozen=True)
class Regulariser:
    """The gamed baselines' rows (AlpacaEval's df_gamed.csv), which also carry the instructions' difficulties."""

    rows: pd.DataFrame
    official: bool

    @property
    def instructions(self) -> int:
        """Number of instructions that the rows know the difficulty of."""
        return int(self.rows["index"].nunique())

    @property
    def number(self) -> str:
        """What a win rate that is controlled with these rows must be called."""
        if self.official:
            return "LC win rate"
        blind = "" if self.rows["instruction_difficulty"].any() else ", no difficulties"
        return f"LC win rate (stand-in regulariser{blind})"


def regulariser_of(instructions: Sequence[str], gamed: Path | None, difficulty: Path | None) -> Regulariser:
    """What to fit the annotations of `instructions` with: AlpacaEval's own `gamed` rows, or where that is None the
    stand-in with the difficulties of `difficulty`, or with none (zeros).

    Raises `InputError` for a file of another kind or for other instructions.
    """
    if gamed is None:
        known = np.zeros(len(instructions)) if difficulty is None else read_difficulties(difficulty, instructions)
        return standin_regulariser(known)
    regulariser = official_regulariser(gamed)
    if regulariser.instructions != len(instructions):
        raise InputError(
            f"{gamed}: knows {regulariser.instructions} instructions, the comparison has {len(instructions)}; "
            "length control by AlpacaEval's files needs its whole set in its order"
        )
    return regulariser


def fetch_length_control(
    files: LengthControl,
    part: Literal["gamed", "difficulty"],
    instructions: Path,
    out: Path,
    data_root: Path | None,
    pins: Mapping[str, str],
) -> None:
    """Write one of the two files, as the hub (or the folder `offline` below `data_root`) has it, to `out`.

    Raises `InputError` where it can't be had, or does not fit `instructions` (schema `data.instructions.INSTRUCTIONS`):
    better now than when all outputs have been made and paid for.
    """
    name = files.gamed if part == "gamed" else files.difficulty
    if name is None:
        raise ValueError(f"length_control.{part} is not set")
    if data_root is not None and files.offline is not None:
        path = data_root / files.offline / name
    else:
        path = hub.download(files.repo, name, files.revision or pins.get(files.repo))
    texts = read_parquet(instructions, ["instruction"])["instruction"].to_pylist()
    if part == "gamed":
        regulariser_of(texts, path, None)
    else:
        read_difficulties(path, texts)
    write_text(out, path.read_text(encoding="utf-8"))


def official_regulariser(path: Path) -> Regulariser:
    """AlpacaEval's df_gamed.csv; raises `InputError` when it is not that file."""
    import pandas as pd

    rows = read_csv(path)
    missing = [column for column in GAMED_COLUMNS if column not in rows]
    if missing:
        raise InputError(f"{path}: no column {', '.join(missing)}; expected AlpacaEval's df_gamed.csv")
    if not isinstance(rows.index, pd.RangeIndex) or rows["not_gamed_baseline"].astype(bool).any():
        raise InputError(f"{path}: expected gamed baselines only; take df_gamed.csv of tatsu-lab/alpaca_eval")
    return Regulariser(rows[GAMED_COLUMNS], official=True)


def standin_regulariser(difficulty: ArrayLike, seed: int = 0) -> Regulariser:
    """Rows to use where df_gamed.csv is absent, rebuilt from what is published about the two gamed baselines.

    `difficulty` [n] are the instructions' difficulties in the annotations' order (zeros where none are known). Each
    baseline is the reference model itself, so its quality is taken as equal (no intercept): its preference is
    sigmoid(a x + b difficulty) with the published a and b, x = tanh(mu + z), z standard normal, mu such that the mean
    preference is the published win rate.
    """
    import pandas as pd
    from scipy.stats import norm

    values = np.asarray(difficulty, dtype=np.float64)
    quantiles = norm.ppf((np.arange(values.size) + 0.5) / values.size)
    generator = np.random.default_rng(seed)
    frames = []
    for model, (slope, weight, rate) in GAMED.items():
        lengths, preference = _gamed(slope, weight * values, rate, generator.permutation(quantiles))
        columns = [preference, np.arange(values.size), lengths, values, False, model]
        frames.append(pd.DataFrame(dict(zip(GAMED_COLUMNS, columns, strict=True))))
    return Regulariser(pd.concat(frames, ignore_index=True), official=False)


def _gamed(slope: float, offset: Floats, rate: float, spread: Floats) -> tuple[Floats, Floats]:
    """Standardised length differences around the mean that gives the win rate `rate`, and their preferences."""
    from scipy.optimize import brentq
    from scipy.special import expit

    def preference(mean: float) -> Floats:
        return np.asarray(expit(slope * np.tanh(mean + spread) + offset), dtype=np.float64)

    mean = float(brentq(lambda guess: float(preference(guess).mean()) - rate, -10.0, 10.0))
    return mean + spread, preference(mean)


def read_difficulties(path: Path, instructions: Sequence[str]) -> Floats:
    """Difficulties [n] of `instructions`.

    A file with an `instruction` column is joined by its text; AlpacaEval's instruction_difficulty.csv has none and
    holds the 805 instructions in their order. Raises `InputError` when an instruction has no difficulty.
    """
    table = read_csv(path)
    names = [column for column in table if "difficulty" in str(column)]
    if len(names) != 1:
        raise InputError(f"{path}: expected one column of difficulties, found {names or 'none'}")
    values = table[names[0]].astype(float)
    if "instruction" not in table:
        if len(table) != len(instructions):
            raise InputError(f"{path}: {len(table)} difficulties for {len(instructions)} instructions, joined by order")
        return np.asarray(values, dtype=np.float64)
    known = dict(zip(table["instruction"], values, strict=True))
    absent = [instruction for instruction in instructions if instruction not in known]
    if absent:
        raise InputError(f"{path}: no difficulty for {len(absent)} instructions, first {absent[0][:50]!r}")
    return np.array([known[instruction] for instruction in instructions])


def read_csv(path: Path) -> pd.DataFrame:
    """A CSV file; an unreadable one is an `InputError`."""
    import pandas as pd

    try:
        # An instruction may be the text "NA" or "None": nothing is read as missing.
        return pd.read_csv(path, keep_default_na=False)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable CSV file ({str(error).splitlines()[0]})") from error
