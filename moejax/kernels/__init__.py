"""Routing, permutation and expert products for GPUs.

`reference.py` is the specification, `triton/` the kernels (Pallas, Triton backend), `dispatch.py` the table of both.
"""

from moejax.kernels.dispatch import KERNELS, Kernels, kernels
from moejax.kernels.layout import BlockLayout, block_layout
from moejax.kernels.reference import Routes

__all__ = ["KERNELS", "BlockLayout", "Kernels", "Routes", "block_layout", "kernels"]
