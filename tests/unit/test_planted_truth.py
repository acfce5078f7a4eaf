"""The best accuracies of the planted world against brute force, simulation and symmetry."""

from __future__ import annotations

import itertools
import math
import re
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from shallow_signals.config.sources import PlantedSource
from shallow_signals.config.truncation import parse
from shallow_signals.data import planted
from shallow_signals.data.planted_truth import best_accuracy, length_only_accuracy
from shallow_signals.files import InputError

PROFILES = ("front", "uniform", "back", "length")
CUTS = (
    *("full", "head50", "head33", "head20", "head10", "head1", "tail50", "tail33", "tail10", "pairs50", "min_length"),
    *("window50", "window33", "window10", "window100", "head9tok", "tail9tok", "window9tok"),
    *("head16tok", "tail16tok", "window16tok", "head500tok"),
)


def source(profile: str = "front", **changes: object) -> PlantedSource:
    return PlantedSource.model_validate({"profile": profile, "pairs": 1, "test_pairs": 1, "seed": 0, **changes})


def best(world: PlantedSource, name: str) -> float:
    return best_accuracy(world, parse(name))


# An independent world: plain loops over texts of symbols. A sentence is "d+nvg+." or "d-nvg-.": its words' classes, the
# quality words by their sign, a response's first word in capitals. What can be told apart is what differs as text.
def symbols(qualities: tuple[int, ...]) -> str:
    text = "".join(f"d{sign}nvg{sign}." for sign in ("+" if q > 0 else "-" for q in qualities))
    return "D" + text[1:]


def cuts_of(text: str, name: str) -> list[str]:
    """All equally likely kept parts."""
    match = re.fullmatch(r"(head|tail|window)(\d+)(tok)?", name)
    if match is None:
        return [text]
    n = int(match[2])
    kept = min(len(text), n) if match[3] else max(1, len(text) * n // 100)
    spare = len(text) - kept
    starts = {"head": [0], "tail": [spare], "window": list(range(spare + 1))}[match[1]]
    return [text[start : start + kept] for start in starts]


def reward(qualities: tuple[int, ...], profile: str, decay: float, counts: tuple[int, ...]) -> float:
    n = len(qualities)
    raw = [decay**s if profile == "front" else decay ** (n - 1 - s) if profile == "back" else 1.0 for s in range(n)]
    total = sum(w * q for w, q in zip(raw, qualities, strict=True)) / math.sqrt(sum(w * w for w in raw))
    if profile != "length":
        return total
    return 0.3 * total + math.sqrt(0.91) * (n - np.mean(counts)) / float(np.std(counts))


def brute_force(world: PlantedSource, name: str, counts: tuple[int, ...], lengths_only: bool = False) -> float:
    """Sum, over everything that can be seen, of the larger of the two labels' probabilities."""
    stay = world.persistence + (1 - world.persistence) / 2
    states = []
    for n in counts:
        for qualities in itertools.product((-1, 1), repeat=n):
            chance = 0.5 / len(counts)
            for a, b in itertools.pairwise(qualities):
                chance *= stay if a == b else 1 - stay
            states.append((chance, reward(qualities, world.profile, world.decay, counts), symbols(qualities)))
    wins: dict[tuple[object, object], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for (p, r, text), (p2, r2, text2) in itertools.product(states, repeat=2):
        first = 1 / (1 + math.exp(-world.sharpness * (r - r2)))
        if name == "min_length":
            shorter = min(len(text), len(text2))
            seen = [(text[:shorter], text2[:shorter])]
        else:
            seen = list(itertools.product(cuts_of(text, name), cuts_of(text2, name)))
        for a, b in seen:
            key = (len(a), len(b)) if lengths_only else (a, b)
            wins[key][0] += p * p2 * first / len(seen)
            wins[key][1] += p * p2 * (1 - first) / len(seen)
    assert sum(map(sum, wins.values())) == pytest.approx(1)
    return sum(map(max, wins.values()))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("persistence", [0.0, 0.7])
def test_equals_brute_force_on_a_small_world(profile: str, persistence: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted, "SENTENCE_COUNTS", (2, 3))
    world = source(profile, persistence=persistence, decay=0.5)
    for name in CUTS:
        assert best(world, name) == pytest.approx(brute_force(world, name, (2, 3)), abs=1e-12), name
        assert length_only_accuracy(world, parse(name)) == pytest.approx(
            brute_force(world, name, (2, 3), lengths_only=True), abs=1e-12
        ), name
    # The check is sharp: another persistence, or the next cut, is told apart.
    other = source(profile, persistence=0.5, decay=0.5)
    assert abs(best(other, "head50") - brute_force(world, "head50", (2, 3))) > 1e-4
    assert abs(best(world, "head33") - brute_force(world, "head50", (2, 3))) > 1e-4


N = 200_000


def simulate(world: PlantedSource, seed: int) -> tuple[npt.NDArray[np.float64], ...]:
    """Labels [N] (1: the first is preferred), counts [2, N] and qualities [2, N, 10]."""
    rng = np.random.default_rng(seed)
    counts = rng.choice([6, 8, 10], size=(2, N))
    qualities = rng.choice([-1.0, 1.0], size=(2, N, 10))
    again = rng.random((2, N, 10)) < world.persistence
    for sentence in range(1, 10):
        repeated = again[:, :, sentence]
        qualities[:, :, sentence][repeated] = qualities[:, :, sentence - 1][repeated]
    totals = partial_reward(world, counts, qualities, np.ones_like(qualities, dtype=bool))
    chance = 1 / (1 + np.exp(-world.sharpness * (totals[0] - totals[1])))
    return (rng.random(N) < chance).astype(float), counts, qualities


def partial_reward(
    world: PlantedSource, counts: npt.NDArray, qualities: npt.NDArray, shown: npt.NDArray
) -> npt.NDArray:
    total = np.zeros(counts.shape)
    for n in (6, 8, 10):
        steps = np.arange(n)
        raw = {"front": world.decay**steps, "back": world.decay ** (n - 1.0 - steps)}.get(world.profile, np.ones(n))
        value = ((qualities * shown)[..., :n] * raw / np.sqrt((raw**2).sum())).sum(axis=-1)
        if world.profile == "length":
            value = 0.3 * value + np.sqrt(0.91) * (n - 8) / np.sqrt(8 / 3)
        total = np.where(counts == n, value, total)
    return total


def accuracy_by_sign(world: PlantedSource, side: str, percent: int) -> float:
    """A judge that adds up what is revealed: with independent qualities the best, what is hidden being symmetric."""
    labels, counts, qualities = simulate(world, seed=percent)
    kept = np.maximum(1, counts * 7 * percent // 100)[..., None]
    first = np.arange(10) * 7 + 1  # tokens of the two quality words
    last = first + 4
    shown = first < kept if side == "head" else last >= counts[..., None] * 7 - kept
    totals = partial_reward(world, counts, qualities, shown)
    gap = totals[0] - totals[1]
    right = np.where(np.abs(gap) < 1e-9, 0.5, (gap > 0) == labels)
    return float(right.mean())


@pytest.mark.parametrize("profile", PROFILES)
def test_equals_simulation_with_independent_qualities(profile: str) -> None:
    world = source(profile)
    error = 4 * math.sqrt(0.25 / N)
    for side, percent in [("head", 100), ("head", 50), ("tail", 50), ("head", 33), ("tail", 20), ("head", 10)]:
        measured = accuracy_by_sign(world, side, percent)
        assert abs(best(world, f"{side}{percent}") - measured) < error, (side, percent)
    # Negative control: the other half of the response does not pass for this one.
    if profile in ("front", "back"):
        assert abs(best(world, "tail50") - accuracy_by_sign(world, "head", 50)) > error


def test_equals_counting_on_generated_texts() -> None:
    """With persistence: a judge that has counted, on the world's own texts, which label goes with what it sees."""
    world = source("front", persistence=0.7, pairs=30_000)
    pairs = [pair for pair in planted.generate(world) if pair["split"] == "train"]
    for name in ("head10", "tail10", "head9tok"):
        votes: Counter[tuple[object, object]] = Counter()
        for pair in pairs:
            seen = [shown(pair["chosen"], name), shown(pair["rejected"], name)]
            votes[seen[0], seen[1]] += 1
        cells = {frozenset(key): [votes[key], votes[key[::-1]]] for key in votes if key[0] != key[1]}
        right = sum(max(cell) for cell in cells.values()) + sum(votes[key] for key in votes if key[0] == key[1]) / 2
        assert len(cells) < 40  # few enough for counting not to flatter itself
        assert abs(best(world, name) - right / len(pairs)) < 4 * math.sqrt(0.25 / len(pairs)), name


def shown(text: str, name: str) -> tuple[int, tuple[int, ...]]:
    words = re.findall(r"[A-Za-z]+|\.", text)
    [kept] = cuts_of("x" * len(words), name)
    part = words[: len(kept)] if name.startswith("head") else words[-len(kept) :]
    return len(part), tuple(planted.QUALITY_OF_WORD[word] for word in part if word in planted.QUALITY_OF_WORD)


@pytest.mark.parametrize("persistence", [0.0, 0.7])
def test_symmetries(persistence: float) -> None:
    front, uniform, back = (source(profile, persistence=persistence) for profile in ("front", "uniform", "back"))
    for size in ("50", "33", "20", "10", "16tok"):
        assert best(front, f"head{size}") == pytest.approx(best(back, f"tail{size}"), abs=1e-12)
        assert best(front, f"tail{size}") == pytest.approx(best(back, f"head{size}"), abs=1e-12)
        assert best(uniform, f"head{size}") == pytest.approx(best(uniform, f"tail{size}"), abs=1e-12)


def test_signal_sits_where_it_was_planted() -> None:
    front, back, uniform, length = (source(profile) for profile in ("front", "back", "uniform", "length"))
    assert best(front, "full") - best(front, "head50") < 0.02
    assert best(front, "full") - best(front, "tail50") > 0.3
    assert best(back, "full") - best(back, "head50") > 0.3
    assert best(uniform, "full") - best(uniform, "head50") > 0.1
    assert best(length, "full") - length_only_accuracy(length, parse("full")) < 0.08
    # What a fixed number of tokens, or the shorter one's length, takes away in the length-biased world.
    assert best(length, "head50") > 0.8 > 0.6 > best(length, "min_length") > best(length, "head16tok")


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("persistence", [0.0, 0.7])
def test_bounds_and_order(profile: str, persistence: float) -> None:
    world = source(profile, persistence=persistence)
    full = best(world, "full")
    for side in ("head", "tail"):
        ladder = [best(world, f"{side}{n}") for n in (1, 5, 10, 20, 33, 50, 75, 90, 100)]
        assert all(low <= high + 1e-12 for low, high in itertools.pairwise(ladder))
        assert ladder[-1] == pytest.approx(full)
    for name in CUTS:
        value, by_length = best(world, name), length_only_accuracy(world, parse(name))
        assert 0.5 - 1e-12 <= by_length <= value + 1e-12 and value <= full + 1e-12, name
    assert best(world, "shuffled1") == length_only_accuracy(world, parse("shuffled1")) == 0.5
    if profile != "length":
        assert length_only_accuracy(world, parse("full")) == pytest.approx(0.5)


def test_full_equals_the_expected_agreement_of_labels_with_the_reward() -> None:
    world = source("back", persistence=0.7, pairs=20_000)
    margins = np.array([pair["margin"] for pair in planted.generate(world)], dtype=float)
    expected = 1 / (1 + np.exp(-world.sharpness * np.abs(margins)))
    assert abs(best(world, "full") - expected.mean()) < 4 * expected.std() / math.sqrt(len(margins))


@pytest.mark.parametrize("name", ["head50-char", "head100chars", "topshare50"])
def test_refuses_what_cannot_be_enumerated(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}'.*token cuts only"):
        best(source(), name)
    with pytest.raises(InputError, match=f"'{name}'"):
        length_only_accuracy(source(), parse(name))


def test_table_of_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "planted-world.md").read_text(encoding="utf-8")
    columns = ("full", "head50", "head20", "tail50", "tail20", "window50", "min_length")
    rows = re.findall(r"^\| (\w+), ([\d.]+) \| (\.\d.*) \|$", page, flags=re.MULTILINE)
    assert len(rows) == 8
    for profile, persistence, cells in rows:
        world = source(profile, persistence=float(persistence))
        values = [*(best(world, name) for name in columns), length_only_accuracy(world, parse("full"))]
        assert cells.split(" | ") == [f"{value:.3f}".lstrip("0") for value in values]


def test_is_quick() -> None:
    started = time.process_time()
    for name in ("full", "head50", "window50", "min_length"):
        best(source(), name)
    assert time.process_time() - started < 2
