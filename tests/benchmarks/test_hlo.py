"""Parsing HLO text: made-up programs for a GPU and a TPU, and one compiled here."""

import types

import ahead_of_time
import hlo
import jax
import jax.numpy as jnp
import pytest

from gradmix_jax.training import cost

GPU = """
HloModule jit_step, is_scheduled=true

%wrapped_add (p.0: f32[8], p.1: f32[8]) -> f32[8] {
  %p.0 = f32[8]{0} parameter(0)
  %p.1 = f32[8]{0} parameter(1)
  ROOT %sum = f32[8]{0} add(%p.0, %p.1)
}

%body (state.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state.1 = (s32[], f32[8]{0}) parameter(0)
  %count = s32[] get-tuple-element(%state.1), index=0
  %value = f32[8]{0} get-tuple-element(%state.1), index=1
  %twice = f32[8]{0} fusion(%value, %value), kind=kLoop, calls=%wrapped_add
  ROOT %next = (s32[], f32[8]{0}) tuple(%count, %twice)
}

ENTRY %main.9 (x.1: bf16[2,4,4,3], w.1: bf16[5,3,3,3]) -> f32[8] {
  %x.1 = bf16[2,4,4,3]{3,2,1,0} parameter(0)
  %w.1 = bf16[5,3,3,3]{3,2,1,0} parameter(1), metadata={op_name="w(x)"}
  %conv.1 = (bf16[2,4,4,5]{3,2,1,0}, u8[0]{0}) custom-call(%x.1, %w.1), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", metadata={op_name="a(b)"}
  %y = bf16[2,4,4,5]{3,2,1,0} get-tuple-element(%conv.1), index=0
  %dw.1 = (bf16[5,3,3,3]{3,2,1,0}, u8[0]{0}) custom-call(%x.1, %y), dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convBackwardFilter"
  %dx.1 = (bf16[2,4,4,3]{3,2,1,0}, u8[0]{0}) custom-call(%y, %w.1), dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convBackwardInput"
  %gather = f32[8]{0} all-gather(%w.1), channel_id=1
  %start = (s32[], f32[8]{0}) tuple(%x.1, %gather)
  %loop = (s32[], f32[8]{0}) while(%start), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"32"}}
  ROOT %result = f32[8]{0} get-tuple-element(%loop), index=1
}
"""


def test_kernels_of_a_gpu_program():
    kernels = {kernel.name: kernel for kernel in hlo.kernels(GPU)}
    assert set(kernels) == {"conv.1", "dw.1", "dx.1", "twice"}
    x, w, y = 2 * 4 * 4 * 3 * 2, 5 * 3 * 3 * 3 * 2, 2 * 4 * 4 * 5 * 2
    assert [kernels[name].bytes for name in ("conv.1", "dw.1", "dx.1")] == [x + w + y] * 3
    # Every output value is a sum of 3 x 3 x 3 products; the backward passes have as many.
    assert [kernels[name].flops for name in ("conv.1", "dw.1", "dx.1")] == [2 * (2 * 4 * 4 * 5) * 27] * 3
    # An operand named twice is read once; the body of a loop counts once per iteration.
    assert kernels["twice"] == hlo.Kernel("twice", 2 * 32, 0, 32)


def test_products_of_cublas_count_and_those_of_xla_are_left_to_xla():
    text = """
ENTRY %main (a: bf16[6,8,16], b: bf16[6,16,4]) -> bf16[6,8,4] {
  %a = bf16[6,8,16]{2,1,0} parameter(0)
  %b = bf16[6,16,4]{2,1,0} parameter(1)
  ROOT %ab = (bf16[6,8,4]{2,1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],\
"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":["0"],"rhs_batch_dimensions":["0"]}}}
}
"""
    (kernel,) = hlo.kernels(text)
    assert kernel.flops == 2 * 6 * 8 * 4 * 16 and hlo.calls_libraries(text)
    assert hlo.kernels(text.replace("__cublas$lt$matmul", "triton"))[0].flops == 0
    assert not hlo.calls_libraries(text.replace("__cublas$lt$matmul", "triton"))


class Compiled:
    """A GPU program as XLA's analyses see it: -1 FLOP and -1 byte for every library call."""

    def cost_analysis(self):
        return {"flops": 8.0 - 3, "bytes accessed": 64.0 - 3}

    def memory_analysis(self):
        return types.SimpleNamespace(temp_size_in_bytes=77)

    def as_text(self):
        return GPU


def test_costs_of_a_gpu_program_include_its_convolutions():
    # XLA has counted one of the loop's 32 rounds of 8 additions.
    convolutions, others = 3 * 2 * (2 * 4 * 4 * 5) * 27, 31 * 8
    x, w, y = 2 * 4 * 4 * 3 * 2, 5 * 3 * 3 * 3 * 2, 2 * 4 * 4 * 5 * 2
    assert hlo.cost_of(Compiled()) == cost.Cost(5.0 + others + convolutions, 3 * (x + w + y) + 64, 77)


def test_a_slice_reads_what_it_takes():
    text = """
%take (p.0: f32[1000,4], p.1: f32[4]) -> f32[4] {
  %p.0 = f32[1000,4]{1,0} parameter(0)
  %p.1 = f32[4]{0} parameter(1)
  %part = f32[1,4]{1,0} slice(%p.0), slice={[7:8], [0:4]}
  %row = f32[4]{0} bitcast(%part)
  ROOT %sum = f32[4]{0} add(%row, %p.1)
}

ENTRY %main (x: f32[4], table: f32[1000,4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %table = f32[1000,4]{1,0} parameter(1)
  ROOT %taken = f32[4]{0} fusion(%table, %x), kind=kLoop, calls=%take
}
"""
    assert hlo.kernels(text) == [hlo.Kernel("taken", 3 * 16, 0, 1)]
    # Unless something else reads all of it.
    whole = text.replace("%row = f32[4]{0} bitcast(%part)", "%row = f32[4]{0} reduce(%p.0, %p.1)")
    assert hlo.kernels(whole) == [hlo.Kernel("taken", 16_000 + 2 * 16, 0, 1)]


def test_cycles_of_a_tpu_program():
    text = """
ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %a = f32[8]{0} fusion(%x), backend_config={"window_config":{"estimated_cycles":"1824"}}
  %b = f32[8]{0} fusion(%a), backend_config={"window_config":{"estimated_cycles":"9223372036854775807"}}
  ROOT %c = f32[8]{0} fusion(%b), backend_config={"estimated_cycles":"76"}
}
"""
    assert hlo.estimated_cycles(text) == 1900


def test_collectives():
    text = """
      %all-gather.1 = s32[128]{0} all-gather(%x), channel_id=1
      ROOT %ar = (f32[2,16]{1,0}, /*index=1*/f32[]) all-reduce(%a, %b), channel_id=2
      %start = (f32[4,8]{1,0}, f32[32,8]{1,0}) all-gather-start(%z), channel_id=3
      %done = f32[32,8]{1,0} all-gather-done(%start)
      %add = f32[32,8]{1,0} add(%done, %done)
    """
    gathered, reduced, asynchronous = hlo.collectives(text)
    assert (gathered.kind, gathered.bytes) == ("all-gather", 512)
    assert (reduced.kind, reduced.bytes) == ("all-reduce", 2 * 16 * 4 + 4)
    assert (asynchronous.kind, asynchronous.bytes) == ("all-gather", 32 * 8 * 4)


def test_kernels_behind_a_collective():
    text = """
ENTRY %main (x: f32[250]) -> f32[250] {
  %x = f32[250]{0} parameter(0)
  %start = f32[250]{0} all-reduce-start(%x), channel_id=1
  %a = f32[250]{0} fusion(%x), kind=kLoop, calls=%f
  %b = f32[250]{0} fusion(%a), kind=kLoop, calls=%f
  %done = f32[250]{0} all-reduce-done(%start)
  %c = f32[250]{0} fusion(%done), kind=kLoop, calls=%f
  %second = f32[250]{0} all-reduce-start(%c), channel_id=2
  ROOT %end = f32[250]{0} all-reduce-done(%second)
}
"""
    assert hlo.overlaps(text, lambda kernel: kernel.bytes * 1e-3) == [(1000, 4.0), (1000, 0.0)]


def test_computations_of_a_program_compiled_here():
    def step(x):
        return jax.lax.fori_loop(0, 7, lambda _, x: jnp.sin(x) * 2 + jnp.cos(x), x)

    text = jax.jit(step).lower(jnp.ones((16, 16))).compile().as_text()
    programs = hlo.computations(text)
    assert any(instruction.operation == "parameter" for instruction in programs["ENTRY"])
    # However XLA compiles the loop, its body of at least 2 x 1024 bytes counts seven times.
    kernels = hlo.kernels(text)
    assert max(kernel.times for kernel in kernels) == 7
    assert sum(kernel.times * kernel.bytes for kernel in kernels) >= 7 * 2 * 1024


def test_a_missing_compiler_is_named(monkeypatch):
    target = ahead_of_time.TARGETS["v5e"]._replace(module="no_such_module.plugin")
    with pytest.raises(SystemExit, match=r'no compiler for TPU v5e here: pip install "jax\[tpu\]"'):
        ahead_of_time.prepare(target)
