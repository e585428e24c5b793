"""What a conversion and a loader read from: named tensors, whatever the format of the folder."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from moejax._convert.reading import ByteCounter
from moejax._convert.tensor_info import Index, TensorInfo


class TensorSource(Protocol):
    """Tensors by name. Implemented by `SafetensorsFolder` and `OrbaxFolder`; threads may read at the same time."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Name -> shape and dtype; nothing has been read yet."""
        ...

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors, as they are stored."""
        ...

    @property
    def read_bytes(self) -> ByteCounter:
        """Bytes of tensors that were read so far."""
        ...

    def read_into(self, name: str, out: np.ndarray, index: Index | None = None, *, allow_nan: bool = False) -> None:
        """Reads one tensor, or the part of it at `index`, into `out` (any float dtype, C-contiguous), rounding.

        Raises:
            CheckpointError: when it cannot be read, is damaged, holds NaN or infinity (unless `allow_nan`), or a value
                is too large for the dtype of `out`.
            ValueError: when `out` is not such an array, or `index` not inside the tensor.
        """
        ...
