"""Benchmarks, accuracies and their statistics."""
