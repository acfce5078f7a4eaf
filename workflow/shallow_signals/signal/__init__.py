"""Where the signal sits: log-probabilities of every token, implicit rewards at every cut, and the probe."""
