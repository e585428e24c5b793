"""A mesh, and the rules that say what is split over it, as the modules and the decoding steps use them.

Arrays outside of `Parallel.map` are whole, global arrays with a sharding; inside, code sees what one device holds and
names every collective. Each region of the forward pass (embedding, attention, MoE, logits) is one `map`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from moejax._sharding import LogicalAxis, MeshAxes, Rules, partition_spec
from moejax.moe.split import FEWEST_ROWS, DispatchName


@dataclass(frozen=True)
class Parallel:
    """How a model runs on a mesh. Without devices (an AbstractMesh) it can be traced and lowered, not run.

    micro_batches: into how many a device's rows are divided, see `in_micro_batches`.
    """

    mesh: Mesh | AbstractMesh
    rules: Rules
    dispatch: DispatchName
    micro_batches: int = 1

    def axes(self, logical: LogicalAxis) -> MeshAxes:
        """Mesh axes that `logical` is split over, for collectives inside `map`; () where it is whole."""
        return self.rules[logical]

    def spec(self, *logical: LogicalAxis | None) -> PartitionSpec:
        """The specification of an array with these logical axes; axes after the last named one are whole."""
        return partition_spec(self.rules.spec(logical))

    def sharding(self, *logical: LogicalAxis | None) -> NamedSharding:
        """Where an array with these logical axes lives."""
        return NamedSharding(self.mesh, self.spec(*logical))

    def specs(self, value: Any) -> Any:
        """The specifications of the arrays of a weight's value (or of a tree of values), in their places."""

        def of_one(one: Any) -> Any:
            return one.per_array(lambda _, axes: self.spec(*axes))

        return jax.tree.map(of_one, value, is_leaf=lambda one: hasattr(one, "per_array"))

    def constrain(self, tree: Any, *logical: LogicalAxis | None) -> Any:
        """The same arrays, living where arrays with these logical axes do.

        With none named they are whole on every device, as what the host reads must be: each process sees all of it.
        """
        return jax.lax.with_sharding_constraint(tree, self.sharding(*logical))

    def map(self, body: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """`body` on what each device holds of its arguments.

        What `out_specs` calls whole must be the same on every device; JAX's own check of that is off, because it wants
        every constant of a loop annotated, in code that knows nothing of meshes.
        """
        return jax.shard_map(body, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def in_micro_batches(self, body: Callable[..., Any], *arrays: tuple[Array, int]) -> Any:
        """`body(*arrays)`, piece by piece and together again, so that what one piece exchanges between devices is under
        way while the next is computed. Rows that would not make pieces of `FEWEST_ROWS` stay together, for each piece
        reads all weights that it needs.

        Args:
            arrays: each with its axis of rows. Of what `body` returns it is the first.
        """
        (first, axis), whole = arrays[0], [array for array, _ in arrays]
        pieces = min(self.micro_batches, first.shape[axis] // FEWEST_ROWS)
        if pieces < 2:
            return body(*whole)
        divided = (jnp.array_split(array, pieces, axis=axis) for array, axis in arrays)
        results = [body(*piece) for piece in zip(*divided, strict=True)]
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *results)

    def map_sequences(self, body: Callable[..., Any], *args: Any) -> Any:
        """`body(*args)` on each device's sequences: these are every array's first axis, and it is otherwise whole."""
        batch = self.spec("batch")
        return self.map(body, batch, batch)(*args)
