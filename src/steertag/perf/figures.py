"""Figures from samples: medians, percentiles, rates."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

__all__ = ["latency_figures", "median", "percentile"]


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of samples in ascending order; `share` of 0 to 1."""
    if not ordered:
        raise ValueError("no samples")
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def latency_figures(seconds: list[float]) -> dict[str, float]:
    """Microseconds: min, p50, p99."""
    ordered = sorted(seconds)
    return {
        "min_us": ordered[0] * 1e6,
        "p50_us": percentile(ordered, 0.50) * 1e6,
        "p99_us": percentile(ordered, 0.99) * 1e6,
    }
