"""What one forward pass tells of a response, for those who read it without the models (and without torch)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class ResponseLogprobs:
    """What one pass tells of one response of T tokens under one model (natural logarithms, float32)."""

    tokens: Floats  # [T] log p(y_t | x, y_<t); 0 for a first token that nothing precedes
    closing_at: Ints  # [C] numbers of tokens t after which the closing was read
    closing: Floats  # [C] log p(closing | x, y_1..t), summed over the closing's tokens
