"""How much memory something takes while it runs."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable


def peak_of(run: Callable[[], object]) -> int:
    """Octets that were allocated at the worst moment, beyond those that were before."""
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        run()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
