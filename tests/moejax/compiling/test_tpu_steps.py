from moejax.compiling.tpu_steps import Operations, count_step
from tests.messages import refuses

# As XLA prints it for a v5e, shortened: a loop over steps, with a loop that writes a cache in it.
HLO = """\
HloModule jit_decode, is_scheduled=true

%wide.body (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %fusion.7 = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%p), kind=kLoop, calls=%fused_computation.7
  ROOT %tuple.1 = (s32[], bf16[8,128]{1,0}) tuple(%p, %fusion.7)
}

%step (q: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %copy-start.6 = (bf16[8,128]{1,0:S(1)}, bf16[8,128]{1,0}, u32[]) copy-start(%q)
  %all-gather-start.1 = (bf16[8,128]{1,0}, bf16[64,128]{1,0}) all-gather-start(%q), channel_id=1
  %fusion.345 = bf16[8,128]{1,0} fusion(%q), kind=kOutput, calls=%fused_computation.345
  %all-gather-done.1 = bf16[64,128]{1,0} all-gather-done(%all-gather-start.1)
  %psum.50 = bf16[8,128]{1,0} all-reduce(%fusion.345), channel_id=2, to_apply=%add
  %custom-call.18 = bf16[8,128]{1,0} custom-call(%psum.50), custom_call_target="tpu_custom_call"
  %custom-call.19 = bf16[8,128]{1,0} custom-call(%psum.50), custom_call_target="ConcatBitcast"
  %while.70 = (s32[], bf16[8,128]{1,0}) while(%q), condition=%wide.cond, body=%wide.body
  ROOT %tuple.2 = (s32[], bf16[8,128]{1,0}) tuple(%q, %psum.50)
}

ENTRY %main (r: bf16[8,128]) -> bf16[8,128] {
  %fusion.1 = bf16[8,128]{1,0} fusion(%r), kind=kLoop, calls=%fused_computation.1
  ROOT %while.68 = (s32[], bf16[8,128]{1,0}) while(%fusion.1), condition=%cond, body=%step
}
"""
STEP = Operations(computing=3, kernels=1, loops=1, in_loops=1, copies=1, collectives=2, overlapped=1)


def test_a_step_is_a_turn_of_the_outermost_loop() -> None:
    assert count_step(HLO, in_loop=True) == STEP


def test_a_whole_program_has_what_is_in_its_loops() -> None:
    found = count_step(HLO, in_loop=False)
    assert (found.computing, found.loops, found.in_loops, found.collectives) == (4, 2, 3, 2)


def test_a_collective_that_nothing_is_computed_beside_does_not_overlap() -> None:
    lines = HLO.splitlines(keepends=True)
    done = next(number for number, line in enumerate(lines) if "all-gather-done.1 =" in line)
    moved = [*lines[: done - 1], lines[done], lines[done - 1], *lines[done + 1 :]]
    assert count_step("".join(moved), in_loop=True).overlapped == 0


def test_other_texts_are_refused() -> None:
    with refuses(ValueError, "2 characters", "as_text"):
        count_step("no", in_loop=False)
    with refuses(ValueError, "one outermost loop", 0):
        count_step(HLO.replace(" while(%fusion.1)", " copy(%fusion.1)"), in_loop=True)
