"""The three matrices of the experts of a layer."""

from typing import Any, NamedTuple


class Expert(NamedTuple):
    """What a device holds of a layer's experts: values (`weights.storage`) of gate and up [E, F, D], down [E, D, F].

    E counts the places of this device, in the layout that the expert backend asks for.
    """

    gate: Any
    up: Any
    down: Any
