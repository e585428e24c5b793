"""Programs lowered for CUDA on a machine that has none, and the Triton kernels in them.

The one place that knows how the versions of JAX differ: 0.10 assumes a GPU when it lowers without one, 0.11 wants an
abstract device.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import jax
import pytest
from jax._src.pallas.triton import lowering as triton_lowering
from jax.experimental.pallas import triton as pallas_triton
from jaxlib.mlir import ir

from moejax.platform import Device, tracing_for

KERNEL_CALL = "__gpu$xla.gpu.triton"


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel in a lowered program. module: its Triton code, parsed and verified, as text."""

    name: str
    grid: tuple[int, int, int]
    warps: int
    stages: int
    module: str


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A program lowered for CUDA: its StableHLO, operation by operation, and its kernels in order."""

    operations: list[ir.OpView]
    kernels: list[Kernel]
    owner: Any  # keeps the module of `operations` alive

    def count(self, *names: str) -> int:
        """Operations called so."""
        return sum(operation.operation.name in names for operation in self.operations)

    def result_sizes(self) -> Iterator[tuple[str, int]]:
        """Name and number of elements of every array that an operation makes."""
        for operation in self.operations:
            for result in operation.operation.results:
                if isinstance(result.type, ir.RankedTensorType):
                    size = 1
                    for extent in result.type.shape:
                        size *= extent
                    yield operation.operation.name, size


def lower(function: Callable[..., Any], *args: Any, device: Device) -> Lowered:
    """`function` lowered for `device`; arguments may be `jax.ShapeDtypeStruct`."""
    with ExitStack() as stack:
        stack.enter_context(tracing_for(device))
        if hasattr(pallas_triton, "get_gpu_info"):
            abstract = jax.sharding.AbstractDevice(device_kind=device.kind, num_cores=None, platform="gpu")
            mesh = jax.sharding.AbstractMesh(
                (1,), ("gpu",), (jax.sharding.AxisType.Explicit,), abstract_device=abstract
            )
            stack.enter_context(jax.sharding.use_abstract_mesh(mesh))
        # A new function, so that nothing traced for another device is found again.
        lowered = jax.jit(lambda *args: function(*args)).trace(*args).lower(lowering_platforms=("cuda",))
    module: Any = lowered.compiler_ir("stablehlo")
    operations = list(_walk(module.operation))
    kernels = [_kernel(one) for one in operations if _is_kernel(one)]
    return Lowered(operations=operations, kernels=kernels, owner=(lowered, module))


def abstract(tree: Any) -> Any:
    """Shapes and dtypes of a tree of arrays."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _walk(operation: Any) -> Iterator[Any]:
    for region in operation.regions:
        for block in region.blocks:
            for one in block.operations:
                yield one
                yield from _walk(one.operation)


def _is_kernel(one: Any) -> bool:
    if one.operation.name != "stablehlo.custom_call":
        return False
    target = ir.StringAttr(one.operation.attributes["call_target_name"]).value
    if "triton" in target and target != KERNEL_CALL:
        pytest.fail(f"unknown custom call {target}: JAX lowers Triton kernels differently now")
    return target == KERNEL_CALL


def _kernel(one: Any) -> Kernel:
    config = ir.DictAttr(one.operation.attributes["mhlo.backend_config"])

    def number(key: str) -> int:
        return ir.IntegerAttr(config[key]).value

    with triton_lowering._new_ir_context():
        # Parsing verifies every operation, which lowering does not.
        module = ir.Module.parse(bytes(ir.StringAttr(config["ir"]).value_bytes))
        text = str(module)
    return Kernel(
        name=ir.StringAttr(config["name"]).value,
        grid=(number("grid_x"), number("grid_y"), number("grid_z")),
        warps=number("num_warps"),
        stages=number("num_stages"),
        module=text,
    )
