"""What a conversion and a loader read from: named tensors, whatever the format of the folder."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from convert.header import TensorInfo

Index = tuple[slice, ...]


class TensorSource(Protocol):
    """Tensors by name. Implemented by `SafetensorsFolder` and `OrbaxFolder`; threads may read at the same time."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Name -> shape and dtype; nothing has been read yet."""
        ...

    def read_into(self, name: str, out: np.ndarray, *, allow_nan: bool = False) -> None:
        """Reads one tensor into `out` (any float dtype, C-contiguous), rounding to its dtype.

        Raises:
            CheckpointError: when it cannot be read, is damaged, holds NaN or infinity (unless `allow_nan`), or a value
                is too large for the dtype of `out`.
            ValueError: when `out` is not such an array.
        """
        ...
