"""pyverbs, rdma-core's Python binding, on steertag's RNIC.

    python -m steertag.compat.pyverbs PROGRAM [ARGUMENT...]

runs a program that imports pyverbs, without a change to it. `install` does the same for the process
that calls it.
"""

from __future__ import annotations

import importlib
import sys
from typing import Final

MODULES: Final = (
    "addr",
    "base",
    "cm_enums",
    "cmid",
    "comp_cntr",
    "cq",
    "device",
    "dma_util",
    "dmabuf",
    "enums",
    "flow",
    "fork",
    "libibverbs",
    "libibverbs_enums",
    "librdmacm",
    "librdmacm_enums",
    "mem_alloc",
    "mr",
    "pd",
    "providers",
    "providers.efa",
    "providers.efa.efa_enums",
    "providers.efa.efadv",
    "providers.mlx5",
    "providers.mlx5.dr_action",
    "providers.mlx5.dr_domain",
    "providers.mlx5.dr_matcher",
    "providers.mlx5.dr_rule",
    "providers.mlx5.dr_table",
    "providers.mlx5.mlx5_enums",
    "providers.mlx5.mlx5_vfio",
    "providers.mlx5.mlx5dv",
    "providers.mlx5.mlx5dv_crypto",
    "providers.mlx5.mlx5dv_dmabuf",
    "providers.mlx5.mlx5dv_event",
    "providers.mlx5.mlx5dv_flow",
    "providers.mlx5.mlx5dv_mkey",
    "providers.mlx5.mlx5dv_objects",
    "providers.mlx5.mlx5dv_sched",
    "pyverbs_error",
    "qp",
    "spec",
    "srq",
    "utils",
    "wq",
    "wr",
    "xrcd",
)
"""pyverbs' modules, below `pyverbs`."""


def install() -> None:
    """Have `import pyverbs` find this, in this process."""
    from steertag.compat.pyverbs import vendors

    package = sys.modules["pyverbs"] = sys.modules[__name__]
    for name in MODULES:
        if name.startswith("providers"):
            sys.modules[f"pyverbs.{name}"] = vendors.module(name)
        else:
            sys.modules[f"pyverbs.{name}"] = importlib.import_module(f"{__name__}.{name}")
    setattr(package, "providers", sys.modules["pyverbs.providers"])  # noqa: B010
