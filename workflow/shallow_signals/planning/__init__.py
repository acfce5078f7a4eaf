"""What a run will cost, before anything is submitted: `python -m shallow_signals.planning` (docs/planning.md)."""
