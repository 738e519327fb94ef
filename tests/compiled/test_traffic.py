"""The counter of bytes, on programs written by hand."""

import pytest

from benchmarks.compiled.hlo import parse
from benchmarks.compiled.traffic import Cost, traffic

CYCLES = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'


def program(body: str, *others: str) -> str:
    """An entry computation, and those that it calls."""
    return "\n".join(["HloModule jit_f", *others, "ENTRY %main (x: f32[]) -> f32[] {", body, "}"])


@pytest.mark.parametrize(
    ("text", "size"),
    [("pred[3]", 3), ("bf16[2,3]{1,0}", 12), ("f32[]", 4), ("s4[5]", 3), ("f8e4m3fn[7]", 7)],
)
def test_sizes(text, size):
    module = parse(program(f"  ROOT %x = {text} parameter(0)"))
    assert module.computations[module.entry]["x"].bytes == size


def test_operands_are_read_and_results_written():
    text = program(f"""\
  %x = bf16[1000]{{0}} parameter(0)
  %names = (bf16[1000]{{0}}) tuple(%x)
  %y = f32[1000]{{0}} convert(%x), {CYCLES % 7}
  ROOT %z = f32[1000]{{0}} add(%y, %y), {CYCLES % 5}""")
    assert traffic(text) == Cost(2000 + 4000 + 3 * 4000, 12)


def test_what_is_on_the_chip_is_free():
    """Also as the operand or result of a fusion, and as the far end of a copy."""
    text = program(
        """\
  %x = f32[100]{0:T(128)} parameter(0)
  %start = (f32[100]{0:T(128)S(1)}, f32[100]{0:T(128)}, u32[]{:S(2)}) copy-start(%x)
  %near = f32[100]{0:T(128)S(1)} copy-done(%start)
  %both = (f32[100]{0:T(128)S(1)}, f32[10]{0:T(128)}) fusion(%near), kind=kLoop, calls=%two
  %kept = f32[100]{0:T(128)S(1)} get-tuple-element(%both), index=0
  ROOT %twice = f32[100]{0:T(128)S(1)} add(%kept, %near)""",
        """\
%two (p: f32[100]) -> (f32[100], f32[10]) {
  %p = f32[100]{0} parameter(0)
  %q = f32[100]{0} negate(%p)
  %r = f32[10]{0} slice(%p), slice={[0:10]}
  ROOT %t = (f32[100]{0}, f32[10]{0}) tuple(%q, %r)
}""",
    )
    assert traffic(text).bytes == 400 + 40


LOOP = """\
  %x = f32[100]{0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[100]{0}) tuple(%zero, %x)
  ROOT %loop = (s32[], f32[100]{0}) while(%start), condition=%more, body=%round"""
ROUND = f"""\
%round (state: (s32[], f32[100])) -> (s32[], f32[100]) {{
  %state = (s32[], f32[100]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %v = f32[100]{{0}} get-tuple-element(%state), index=1
  %w = f32[100]{{0}} negate(%v), {CYCLES % 9}
  ROOT %t = (s32[], f32[100]{{0}}) tuple(%i, %w)
}}"""
MORE = """\
%more (state: (s32[], f32[100])) -> pred[] {
  %state = (s32[], f32[100]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %end = s32[] constant(6)
  ROOT %lt = pred[] compare(%i, %end), direction=LT
}"""


def test_loops_count_their_rounds():
    assert traffic(program(LOOP, ROUND, MORE)) == Cost(6 * 800, 6 * 9)
    noted = LOOP + ', backend_config={"known_trip_count":{"n":"4"}}'
    assert traffic(program(noted, ROUND, MORE)).bytes == 4 * 800


def test_loops_in_loops():
    outer = (
        ROUND.replace("%round", "%outer")
        .replace(f"negate(%v), {CYCLES % 9}", "get-tuple-element(%loop), index=1")
        .replace(
            "  %w",
            "  %loop = (s32[], f32[100]{0}) while(%state), condition=%more, body=%round\n  %w",
        )
    )
    text = program(LOOP.replace("body=%round", "body=%outer"), ROUND, MORE, outer)
    assert traffic(text).bytes == 36 * 800


def test_a_loop_of_unknown_length_is_an_error():
    endless = MORE.replace("constant(6)", "get-tuple-element(%state), index=0")
    with pytest.raises(ValueError, match="cannot tell how often this loop runs: loop"):
        traffic(program(LOOP, ROUND, endless))


def test_slices_count_as_slices():
    text = program("""\
  %x = f32[1000]{0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %s = f32[10]{0} dynamic-slice(%x, %i), dynamic_slice_sizes={10}""")
    assert traffic(text).bytes == 40 + 4 + 40


def test_asynchronous_slices_count_as_slices():
    text = program("""\
  %x = f32[1000]{0:T(128)} parameter(0)
  %s = ((f32[1000]{0:T(128)}), f32[10]{0:T(128)S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:10]}
  ROOT %d = f32[10]{0:T(128)S(1)} slice-done(%s)""")
    assert traffic(text).bytes == 40


def test_updates_in_place_count_as_updates():
    text = program("""\
  %x = f32[1000]{0} parameter(0)
  %u = f32[10]{0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %s = f32[1000]{0} dynamic-update-slice(%x, %u, %i)""")
    assert traffic(text).bytes == 40 + 4 + 40


def test_fusions_read_what_they_slice():
    """Through another fusion too; twice is twice, but never more than the whole."""
    fused = """\
%part (p: f32[1000], i: s32[]) -> f32[10] {
  %p = f32[1000]{0} parameter(0)
  %i = s32[] parameter(1)
  %b = f32[10,100]{1,0} bitcast(%p)
  ROOT %s = f32[1,100]{1,0} dynamic-slice(%b, %i, %i), dynamic_slice_sizes={1,100}
}
%both (p: f32[1000], i: s32[]) -> f32[1,100] {
  %p = f32[1000]{0} parameter(0)
  %i = s32[] parameter(1)
  %a = f32[1,100]{1,0} fusion(%p, %i), kind=kLoop, calls=%part
  ROOT %n = f32[1,100]{1,0} negate(%a)
}"""
    text = program(
        """\
  %x = f32[1000]{0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %f = f32[1,100]{1,0} fusion(%x, %i), kind=kLoop, calls=%both""",
        fused,
    )
    assert traffic(text).bytes == 400 + 4 + 400
    whole = fused.replace("negate(%a)", "reduce(%p, %a)")
    assert traffic(text.replace(fused, whole)).bytes == 4000 + 4 + 400


def test_fusions_update_in_place():
    """Read of the slice that is added to, written of the slice; the rest stays where it is."""
    text = program(
        """\
  %x = f32[1000]{0} parameter(0)
  %u = bf16[10]{0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %f = f32[1000]{0} fusion(%x, %u, %i), kind=kLoop, calls=%add_to""",
        """\
%add_to (p: f32[1000], u: bf16[10], i: s32[]) -> f32[1000] {
  %p = f32[1000]{0} parameter(0)
  %u = bf16[10]{0} parameter(1)
  %i = s32[] parameter(2)
  %old = f32[10]{0} dynamic-slice(%p, %i), dynamic_slice_sizes={10}
  %more = f32[10]{0} convert(%u)
  %new = f32[10]{0} add(%old, %more)
  ROOT %s = f32[1000]{0} dynamic-update-slice(%p, %new, %i)
}""",
    )
    assert traffic(text).bytes == 40 + 20 + 4 + 40


def test_of_a_condition_the_dearer_branch_counts():
    branch = """\
%cheap (p: f32[100]) -> f32[10] {
  %p = f32[100]{0} parameter(0)
  ROOT %s = f32[10]{0} slice(%p), slice={[0:10]}
}
%dear (p: f32[100]) -> f32[10] {
  %p = f32[100]{0} parameter(0)
  ROOT %s = f32[10]{0} reduce(%p, %p)
}"""
    text = program(
        """\
  %x = f32[100]{0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %c = f32[10]{0} conditional(%i, %x, %x), branch_computations={%cheap, %dear}""",
        branch,
    )
    assert traffic(text).bytes == 400 + 400 + 40


def test_a_library_keeps_to_its_own_memory():
    text = program("""\
  %x = f32[10]{0} parameter(0)
  %room = f32[99]{0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %c = (f32[10]{0}, s8[999]{0}) custom-call(%x), custom_call_target="__cublas$lt$matmul\"""")
    assert traffic(text).bytes == 40 + 40
