from dataclasses import replace

import pytest

from moejax.compiling.launches import count, instruction_scopes, read_thunks, step_of, thunk_names, triton_calls
from tests.messages import refuses
from tests.moejax.compiling import recorded

SCOPES = {13: "attention", 31: "moe"}


def test_a_step_is_counted() -> None:
    program = read_thunks(recorded.THUNKS)
    found = count(step_of(program), SCOPES)
    assert found.by_scope == {"attention": 1, "moe": 1, "other": 1}
    assert (found.kernels, found.copies, found.collectives, found.command_buffers) == (3, 1, 1, 2)
    assert (found.host_launched, found.host_loops, found.loop_kernels) == (1, 0, 0)
    assert found.unknown == () and found.overlapped == 0


def test_the_whole_program_has_its_own_loop_too() -> None:
    found = count(read_thunks(recorded.THUNKS), {})
    assert (found.copies, found.host_launched, found.host_loops) == (2, 2, 1)


def test_a_launch_has_its_shape() -> None:
    (launch,) = (one.launch for one in read_thunks(recorded.THUNKS).walk() if one.number == 31)
    assert launch is not None
    assert (launch.kernel, launch.grid, launch.threads, launch.shared) == (
        "few_tokens_gate_up",
        (28, 8, 1),
        128,
        110592,
    )


def test_a_loop_driven_by_the_host_is_found_and_one_in_a_graph_is_none() -> None:
    before = count(step_of(read_thunks(recorded.THUNKS)), SCOPES)
    after = count(step_of(read_thunks(recorded.THUNKS + recorded.HOST_LOOP)), SCOPES)
    assert (after.host_loops, after.loop_kernels) == (1, 2)
    assert after.kernels == before.kernels + 2
    inside = "".join(f"    {line}\n" for line in recorded.HOST_LOOP.splitlines() if not line.startswith("condition"))
    graph = f"{recorded.THUNKS}    000: kCommandBuffer [source | sink] \n{inside}"
    assert count(step_of(read_thunks(graph)), SCOPES).host_loops == 0


def test_a_collective_with_kernels_between_its_start_and_its_end_overlaps() -> None:
    assert count(step_of(read_thunks(recorded.THUNKS + recorded.OVERLAP)), SCOPES).overlapped == 1
    alone = "".join(line for line in recorded.OVERLAP.splitlines(keepends=True) if "cosine" not in line)
    assert count(step_of(read_thunks(recorded.THUNKS + alone)), SCOPES).overlapped == 0


def test_a_kind_that_is_not_known_is_told() -> None:
    text = recorded.THUNKS.replace("kAllReduce     [", "kNvshmemReduce [")
    found = count(step_of(read_thunks(text)), SCOPES)
    assert found == replace(count(step_of(read_thunks(recorded.THUNKS)), SCOPES), collectives=0, unknown=found.unknown)
    assert found.unknown == ("kNvshmemReduce",)


def test_kernels_have_the_scopes_of_their_instructions() -> None:
    assert thunk_names(recorded.METADATA) == {13: "gemm_fusion_dot.8", 31: "pallas_call.49"}
    scopes = instruction_scopes(recorded.HLO)
    assert (scopes["gemm_fusion_dot.8"], scopes["pallas_call.49"]) == ("attention", "moe")
    assert triton_calls(recorded.HLO) == {"pallas_call.49"}


@pytest.mark.parametrize(("text", "fact"), [("what is this", "'what is this'"), ("", "0 characters")])
def test_other_texts_are_refused(text: str, fact: str) -> None:
    with refuses(ValueError, fact):
        read_thunks(text)


def test_a_program_with_two_loops_is_no_step() -> None:
    other = recorded.HOST_LOOP.replace("    040", "040").replace("      body", "  body")
    with refuses(ValueError, "one outermost loop", 2):
        step_of(read_thunks(recorded.THUNKS + other))
