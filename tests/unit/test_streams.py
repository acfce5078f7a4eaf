"""The random numbers against published answers, their distributions, and what they are for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from transformers import PreTrainedModel

from shallow_signals.decoding import mixing, sampling_logps
from shallow_signals.decoding.streams import draw_tokens, exponentials, philox, seeds, splitmix, stream_key, uniforms
from two_models import next_logps, some_prompts, two_models

Models = tuple[PreTrainedModel, PreTrainedModel]


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return two_models("llama3", tmp_path_factory.mktemp("models"))


def test_philox_gives_the_published_numbers() -> None:
    """Known answers of the Random123 library's test vectors for philox4x32-10."""
    ones = 0xFFFFFFFF
    known = {
        ((0, 0, 0, 0), (0, 0)): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
        ((ones,) * 4, (ones,) * 2): (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)): (
            0xD16CFE09,
            0x94FDCCEB,
            0x5001E420,
            0x24126EA1,
        ),
    }
    for (counter, key), answer in known.items():
        words = philox(
            [np.array([c], dtype=np.uint64) for c in counter], *(np.array([k], dtype=np.uint64) for k in key)
        )
        assert tuple(int(word[0]) for word in words) == answer


def test_splitmix_gives_the_published_numbers() -> None:
    """The reference implementation's first outputs from the state 1234567."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [int(z) % 2**64 for z in splitmix(torch.tensor([1234567]), 5)[0]] == known


def test_exponentials_are_exponential_and_of_their_own_place() -> None:
    keys = [stream_key(1, name, sample) for name in ("a", "b") for sample in (0, 1)]
    start = seeds(keys, range(1, 4))
    assert len(start.unique()) == 12
    race = exponentials(start.flatten(), 30_000)
    assert kstest(race.flatten().numpy(), "expon").pvalue > 1e-3
    assert np.abs(np.corrcoef(race.numpy()) - np.eye(12)).max() < 5 / 30_000**0.5
    torch.testing.assert_close(exponentials(seeds([keys[2]], [3])[:, 0], 30_000)[0], race[8], rtol=1e-6, atol=0)


def test_distributions_that_race_together_seldom_part(llamas: Models) -> None:
    """Never in more than 2 TV / (1 + TV) of the draws; one number and a cumulative sum part them more often."""
    own, other = (next_logps(model, some_prompts(1)[0]) for model in llamas)
    other = sampling_logps([mixing(0.5)], own, other, 1)
    distance = float((own.exp() - other.exp()).abs().sum() / 2)
    race = exponentials(seeds(range(4000), [1])[:, 0], 480)
    parted = float((draw_tokens(own.exp(), race) != draw_tokens(other.exp(), race)).double().mean())
    bound = 2 * distance / (1 + distance)
    assert distance - 0.03 < parted < bound + 0.03
    number = torch.from_numpy(uniforms(range(4000), [1], 1)[:, 0, 0].copy())
    cumulated = [torch.searchsorted(x.double().exp().cumsum(-1)[0], number) for x in (own, other)]
    assert float((cumulated[0] != cumulated[1]).double().mean()) > bound + 0.03


def test_a_number_depends_on_its_own_place_only() -> None:
    keys = [stream_key(1, name, sample) for name in ("a", "b") for sample in (0, 1)]
    block = uniforms(keys, range(1, 9), 3)
    assert len(np.unique(block)) == block.size
    assert uniforms([keys[2]], [5], 2)[0, 0].tolist() == block[2, 4, :2].tolist()
    many = uniforms(keys, range(1, 3001), 4).ravel()
    assert abs(many.mean() - 0.5) < 4 * (1 / 12 / many.size) ** 0.5
    assert many.min() >= 0 and many.max() < 1
