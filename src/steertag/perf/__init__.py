"""Figures: memory-to-memory benchmarks and the demonstration of the four paths."""
