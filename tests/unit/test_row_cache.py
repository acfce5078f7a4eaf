"""The cache that histories share: forks and ends against lists that are simply copied."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shallow_signals.decoding.cache import RowLayer, _places


@pytest.mark.parametrize("seed", range(5))
def test_rows_hold_what_their_histories_read(seed: int) -> None:
    """200 steps at which histories end, fork and go on; every key tells the token it was made of."""
    random = np.random.default_rng(seed)
    layer = RowLayer()
    texts = [[int(token) for token in random.integers(1000, size=5)] for _ in range(3)]  # by row
    first = torch.tensor(texts, dtype=torch.float32)[:, None, :, None].expand(-1, 2, -1, 4)
    layer.update(first, -first)
    copied = []
    for _ in range(200):
        parents = random.integers(len(texts), size=random.integers(1, 12))
        if random.random() < 0.5:  # some end, the others go on
            parents = np.unique(parents)
        places = _places(parents)
        assert sorted(places) == list(range(len(parents)))
        sources = np.empty(len(parents), dtype=np.int64)
        sources[places] = parents
        moved = np.flatnonzero(sources != np.arange(len(parents)))
        copied.append(len(moved) - (len(parents) - len(set(parents) & set(range(len(parents))))))
        layer.rearrange(torch.from_numpy(sources), torch.from_numpy(moved))
        texts = [[*texts[parent], int(random.integers(1000))] for parent in sources]
        new = torch.tensor([text[-1] for text in texts], dtype=torch.float32)[:, None, None, None].expand(-1, 2, 1, 4)
        keys, values = layer.update(new, -new)
        assert keys[:, 1, :, 2].tolist() == texts
        assert torch.equal(values, -keys)
    assert set(copied) == {0}  # no more rows than have to be
    assert layer.get_seq_length() == 205


def test_a_wrong_move_would_be_seen() -> None:
    layer = RowLayer()
    first = torch.arange(3.0)[:, None, None, None]
    layer.update(first, first)
    layer.rearrange(torch.tensor([0, 2]), torch.tensor([1]))
    keys, _ = layer.update(torch.zeros(2, 1, 1, 1), torch.zeros(2, 1, 1, 1))
    assert keys[:, 0, :, 0].tolist() == [[0, 0], [2, 0]]
    layer.rearrange(torch.tensor([1, 0]), torch.tensor([0]))  # row 1 is left out of the move
    keys, _ = layer.update(torch.zeros(2, 1, 1, 1), torch.zeros(2, 1, 1, 1))
    assert keys[:, 0, 0, 0].tolist() != [2, 0]
