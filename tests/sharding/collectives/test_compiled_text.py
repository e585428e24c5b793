"""Compiled programs in spellings that this XLA does not print for the CPU, such as the asynchronous ones of GPUs.

XLA parses each and prints it back before it is counted, so that no test reads a text that XLA would not write.
"""

import importlib

import pytest

from moejax._sharding.collectives import Collective, CollectiveKind, compiled_collectives
from tests.messages import refuses

# XLA's parser has no public name in JAX.
parse_hlo = importlib.import_module("jaxlib._hlo").hlo_module_from_text

MESH = {"data": 2, "expert": 2, "tensor": 2}
IDS = "channel_id=1, use_global_device_ids=true"
PAIRS = "channel_id=1, replica_groups={{0,1},{2,3},{4,5},{6,7}}"
GLOBAL_PAIRS = f"{PAIRS}, use_global_device_ids=true"
GATHER = f"{GLOBAL_PAIRS}, dimensions={{0}}"
ADD = """
%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}
"""


def count(main: str, *, before: str = "") -> list[Collective]:
    """The collectives of the entry computation `main`, whose parameters are p: f32[4,32] and q: f32[128,32]."""
    text = f"""HloModule test, num_partitions=8
{ADD}
{before}
ENTRY %main (p: f32[4,32], q: f32[128,32]) -> f32[4,32] {{
  %p = f32[4,32] parameter(0)
  %q = f32[128,32] parameter(1)
  {main}
  ROOT %result = f32[4,32] copy(%p)
}}
"""
    return compiled_collectives(parse_hlo(text).to_string(), MESH)


def over_tensor(kind: CollectiveKind, elements: int, *, scope: str = "", in_loop: bool = False) -> Collective:
    axes = ("tensor",)
    return Collective(kind=kind, axes=axes, elements=elements, dtype="float32", in_loop=in_loop, scope=scope)


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", ("tensor",)),
        ("{{5,1},{4,0},{7,3},{6,2}}", ("data",)),
        ("{}", ("data", "expert", "tensor")),
        ("[2,4]<=[8]", ("expert", "tensor")),
        ("[1,8]<=[8]", ("data", "expert", "tensor")),
        ("[4,2]<=[2,4]T(1,0)", ("data",)),
        ("[4,2]<=[2,2,2]T(0,2,1)", ("expert",)),
        ("[2,4]<=[2,2,2]T(1,0,2)", ("data", "tensor")),
        ("mesh['axis_0'=1,'axis_1'=8] {'axis_1'}", ("data", "expert", "tensor")),
        ("mesh['a'=2,'b'=4] {'a'}", ("data",)),
        ("mesh['a'=2,'b'=4] {'b'}", ("expert", "tensor")),
        ("mesh['a'=2,'b'=4] {'b':(1)2}", ("expert",)),
        ("mesh['a'=2,'b'=4] {'b':(2)2}", ("tensor",)),
        ("mesh['a'=2,'b'=4] {'a','b':(2)2}", ("data", "tensor")),
        ("mesh['a'=8] {'a':(1)2,'a':(4)2}", ("data", "tensor")),
        ("mesh['a'=8] {'a':(4)2,'a':(1)2}", ("data", "tensor")),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", ("tensor",)),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", ("data", "expert")),
        ("mesh['a'=2,'b'=4], device_ids=(0,1,4,5,2,3,6,7) {'a'}", ("expert",)),
    ],
)
def test_spellings_of_groups(groups: str, axes: tuple[str, ...]) -> None:
    found = count(f"%r = f32[4,32] all-reduce(%p), replica_groups={groups}, {IDS}, to_apply=%add")
    assert [(one.axes, one.elements) for one in found] == [(axes, 128)]


@pytest.mark.parametrize("groups", ["{{0},{1},{2},{3},{4},{5},{6},{7}}", "[8,1]<=[8]"])
def test_groups_of_one_device_move_nothing(groups: str) -> None:
    assert count(f"%r = f32[4,32] all-reduce(%p), replica_groups={groups}, {IDS}, to_apply=%add") == []


@pytest.mark.parametrize(
    ("lines", "collectives"),
    [
        (
            f"""%s = f32[4,32] all-reduce-start(%p), {GLOBAL_PAIRS}, to_apply=%add
            %d = f32[4,32] all-reduce-done(%s)""",
            [over_tensor("all-reduce", 128)],
        ),
        (
            f"""%s = (f32[4,32], f32[8,32]) all-gather-start(%p), {GATHER}
            %d = f32[8,32] all-gather-done(%s)""",
            [over_tensor("all-gather", 256)],
        ),
        (
            f"""%s = ((f32[4,32], f32[128,32]), (f32[8,32], f32[256,32])) all-gather-start(%p, %q), {GATHER}
            %d = (f32[8,32], f32[256,32]) all-gather-done(%s)""",
            [over_tensor("all-gather", 256), over_tensor("all-gather", 8192)],
        ),
        (
            f"""%s = ((f32[4,32]), f32[2,32]) reduce-scatter-start(%p), {GATHER}, to_apply=%add
            %d = f32[2,32] reduce-scatter-done(%s)""",
            [over_tensor("reduce-scatter", 128)],
        ),
        (
            f"""%s = ((f32[4,32]), f32[4,32], u32[], u32[]) all-to-all-start(%p), {PAIRS}, dimensions={{0}}
            %d = f32[4,32] all-to-all-done(%s)""",
            [over_tensor("all-to-all", 128)],
        ),
        (
            f"""%s = ((f32[4,32], f32[4,32]), (f32[4,32], f32[4,32])) all-to-all-start(%p, %p), {PAIRS}
            %d = (f32[4,32], f32[4,32]) all-to-all-done(%s)""",
            [over_tensor("all-to-all", 256)],
        ),
        (
            """%s = (f32[4,32], f32[4,32], u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1},{1,0}}
            %d = f32[4,32] collective-permute-done(%s)""",
            [over_tensor("collective-permute", 128)],
        ),
    ],
    ids=["all-reduce", "all-gather", "two-all-gathers", "reduce-scatter", "all-to-all", "all-to-all-parts", "permute"],
)
def test_a_start_and_its_done_are_one(lines: str, collectives: list[Collective]) -> None:
    assert count(lines) == collectives


def test_merged_starts_take_scopes_from_their_results() -> None:
    name = 'metadata={op_name="jit(f)/(moe/psum:attention/psum)"}'
    merged = f"""%s = (f32[4,32], f32[128,32]) all-reduce-start(%p, %q), {GLOBAL_PAIRS}, to_apply=%add, {name}
    %d = (f32[4,32], f32[128,32]) all-reduce-done(%s)
    """
    first = '%first = f32[4,32] get-tuple-element(%d), index=0, metadata={op_name="jit(f)/layer/moe/psum"}\n'
    second = '%second = f32[128,32] get-tuple-element(%d), index=1, metadata={op_name="jit(f)/layer/attention/psum"}\n'
    reduced = [
        over_tensor("all-reduce", 128, scope="layer/moe"),
        over_tensor("all-reduce", 4096, scope="layer/attention"),
    ]
    assert count(merged + first + second) == reduced
    # The name of the merged operation says what all have in common; here nothing.
    assert count(merged + first) == [reduced[0], over_tensor("all-reduce", 4096)]


@pytest.mark.parametrize("operand", ["%w", "%n"], ids=["all-reduce-start", "async-start"])
def test_an_asynchronous_computation_in_a_loop(operand: str) -> None:
    # XLA prints a start of nothing but an all-reduce as all-reduce-start, of a type that its own has not.
    before = f"""
%wrapped (w: f32[4,32]) -> f32[4,32] {{
  %w = f32[4,32] parameter(0)
  {"%n = f32[4,32] negate(%w)" if operand == "%n" else ""}
  ROOT %r = f32[4,32] all-reduce({operand}), {GLOBAL_PAIRS}, to_apply=%add
}}

%body (b: (f32[4,32])) -> (f32[4,32]) {{
  %b = (f32[4,32]) parameter(0)
  %g = f32[4,32] get-tuple-element(%b), index=0
  %s = ((f32[4,32]), f32[4,32]) async-start(%g), calls=%wrapped
  %u = ((f32[4,32]), f32[4,32]) async-update(%s)
  %d = f32[4,32] async-done(%u)
  ROOT %t = (f32[4,32]) tuple(%d)
}}

%condition (c: (f32[4,32])) -> pred[] {{
  %c = (f32[4,32]) parameter(0)
  %g.1 = f32[4,32] get-tuple-element(%c), index=0
  %r.1 = f32[4,32] all-reduce(%g.1), replica_groups={{{{0,2}},{{1,3}},{{4,6}},{{5,7}}}}, {IDS}, to_apply=%add
  ROOT %t.1 = pred[] constant(true)
}}
"""
    found = count(
        "%i = (f32[4,32]) tuple(%p)\n%w = (f32[4,32]) while(%i), condition=%condition, body=%body", before=before
    )
    assert [(one.axes, one.in_loop) for one in found] == [(("expert",), True), (("tensor",), True)]


def test_a_computation_that_is_called_twice_counts_twice() -> None:
    before = f"""
%gather (w: f32[4,32]) -> f32[8,32] {{
  %w = f32[4,32] parameter(0)
  ROOT %r = f32[8,32] all-gather(%w), {GATHER}
}}

%not_called (w: f32[4,32]) -> f32[8,32] {{
  %w = f32[4,32] parameter(0)
  ROOT %r = f32[8,32] all-gather(%w), {GATHER}
}}
"""
    misleading = 'metadata={op_name="jit(f)/to_apply=%not_called/call"}'
    lines = f"%one = f32[8,32] call(%p), to_apply=%gather, {misleading}\n  %two = f32[8,32] call(%p), to_apply=%gather"
    assert count(lines, before=before) == 2 * [over_tensor("all-gather", 256)]


@pytest.mark.parametrize(
    ("pairs", "axes"),
    [("{{0,4},{4,0}}", ("data",)), ("{{0,7}}", ("data", "expert", "tensor")), ("{{0,0},{1,1}}", ()), ("{}", ())],
)
def test_permutations(pairs: str, axes: tuple[str, ...]) -> None:
    found = count(f"%r = f32[4,32] collective-permute(%p), channel_id=1, source_target_pairs={pairs}")
    assert [one.axes for one in found] == ([axes] if axes else [])


def test_kinds_that_are_not_counted_are_refused() -> None:
    with refuses(ValueError, "collective-broadcast (r)", "all-reduce, all-gather"):
        count("%r = f32[4,32] collective-broadcast(%p), channel_id=1, replica_groups={{0,1},{2,3},{4,5},{6,7}}")


def test_types_that_are_not_known_are_refused() -> None:
    with refuses(ValueError, "'c64'", "pred, s8"):
        count(f"%c = c64[4] constant({{...}})\n  %r = c64[4] all-to-all(%c), {PAIRS}, dimensions={{0}}")


def test_sizes_that_are_not_static_are_refused() -> None:
    with refuses(ValueError, "'<=4'", "static"):
        count(f"%c = f32[<=4] constant({{...}})\n  %r = f32[<=4] all-reduce(%c), {GLOBAL_PAIRS}, to_apply=%add")
