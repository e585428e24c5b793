"""What a collective moves, how a table shows it, and scopes."""

import subprocess
import sys
from fractions import Fraction

import pytest

from moejax._sharding.collectives import COLLECTIVE_KINDS, Collective, CollectiveKind, collectives_table, wire_elements
from moejax._sharding.collectives.collective import DTYPES, ITEM_SIZES, dtype_name, scope_of
from tests.messages import refuses

MESH = {"data": 2, "expert": 4, "tensor": 3}


def one(
    kind: CollectiveKind,
    axes: tuple[str, ...],
    elements: int,
    *,
    dtype: str = "float32",
    loop: bool = False,
    scope: str = "",
) -> Collective:
    return Collective(kind=kind, axes=axes, elements=elements, dtype=dtype, in_loop=loop, scope=scope)


def test_the_ring_formulas() -> None:
    # Over expert and tensor, 12 devices, a vector of 120.
    sent = {kind: wire_elements(one(kind, ("expert", "tensor"), 120), MESH) for kind in COLLECTIVE_KINDS}
    gathered = {"all-gather": 110, "reduce-scatter": 110, "all-to-all": 110}
    assert sent == {"all-reduce": 220, **gathered, "collective-permute": 120}


def test_wire_elements_are_exact() -> None:
    assert wire_elements(one("all-reduce", ("tensor",), 10), MESH) == Fraction(40, 3)


def test_an_all_reduce_sends_what_its_two_halves_send() -> None:
    halves = [wire_elements(one(kind, ("expert",), 64), MESH) for kind in ("reduce-scatter", "all-gather")]
    assert sum(halves) == wire_elements(one("all-reduce", ("expert",), 64), MESH)


def test_the_table() -> None:
    collectives = [
        one("all-reduce", ("expert", "tensor"), 6144, dtype="bfloat16", loop=True, scope="layer/moe"),
        one("all-gather", ("tensor",), 10),
        one("all-reduce", ("expert", "tensor"), 6144, dtype="bfloat16", loop=True, scope="layer/moe"),
    ]
    assert collectives_table(collectives, MESH) == "\n".join(
        [
            "kind        axes           loop  dtype     count  elements   bytes  wire bytes  scope",
            "all-reduce  expert,tensor  yes   bfloat16      2     6,144  12,288      22,528  layer/moe",
            "all-gather  tensor         no    float32       1        10      40        26.7",
            "3 collectives, 24,616 bytes, 45,082.7 wire bytes per device",
        ]
    )


def test_a_table_without_scopes_has_no_column_for_them() -> None:
    table = collectives_table([one("collective-permute", ("data",), 5, dtype="int8")], MESH)
    assert table.splitlines()[0].endswith("wire bytes")
    assert table.splitlines()[1].split() == ["collective-permute", "data", "no", "int8", "1", "5", "5", "5"]


def test_an_empty_table() -> None:
    assert collectives_table([], MESH).splitlines()[-1] == "0 collectives, 0 bytes, 0 wire bytes per device"


def test_every_known_type_has_a_size() -> None:
    assert set(DTYPES.values()) == set(ITEM_SIZES)


def test_an_unknown_type_is_refused() -> None:
    with refuses(ValueError, "'s4'", "pred"):
        dtype_name("s4")


@pytest.mark.parametrize(
    ("op_name", "scope"),
    [
        ("jit(f)/psum", ""),
        ("jit(<lambda>)/shard_map/moe/psum", "moe"),
        ("jit(f)/shard_map/while/body/layers.3/jit(inner)/moe/psum", "layers.3/moe"),
        ("jit(f)/while/cond/check/reduce_and", "check"),
        ("jit(f)/while/body/closed_call/psum", ""),
        ("jit(f)/cond/branch_1_fun/a/psum", "a"),
        ("jit(f)/vmap(a)/psum", "a"),
        ("jit(f)/vmap()/psum", ""),
        ("jit(f)/a/vmap(vmap(b))/vmap(vmap(jit(g)))/c/psum", "a/b/c"),
        ("jit(f)/checkpoint/jit(g)/a/psum", "a"),
        ("jit(f)/my_vmap(x)/psum", "my_vmap(x)"),
        ("jit(f)/layer/(moe/psum:attention/psum)", "layer"),
        ("jit(f)/shardings/psum", "shardings"),
        ("jit(f)/report/sharding_constraint;jit(f)/layer/moe/psum", "report"),
        ("", ""),
    ],
)
def test_scopes(op_name: str, scope: str) -> None:
    assert scope_of(op_name) == scope


def test_counting_needs_no_jax() -> None:
    program = "import sys, moejax._sharding.collectives; print('jax' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"
    )
