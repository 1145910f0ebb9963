"""SwiGLU of rows against float64, and step by step against the plain path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from qwen_agent.llm.kernels import fused_swiglu, reference

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# Relative error of one rounding; the interpreter cuts bfloat16 off instead of rounding it.
UNIT = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2**-22}

SMALL = [(1, 64), (3, 33), (2, 1)]
LARGE = [(1, 12288), (2048, 11008), (5, 9729), (64, 18944)]


def shapes() -> list[tuple[int, int]]:
    return SMALL + (LARGE if torch.cuda.is_available() else [(2, 1031)])


def close(got: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    error = (got.double() - wanted).norm() / wanted.norm()
    assert error <= 2 * UNIT[dtype] * (1 if got.is_cuda else 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", shapes())
def test_gate_and_up_become_one(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
    rows, width = shape
    gate_up = torch.randn(rows, 2 * width, device=device).mul(2).to(dtype)
    out = torch.full((rows, width), torch.nan, dtype=dtype, device=device)
    got = fused_swiglu.swiglu(gate_up, out=out)
    assert got is out
    close(got, fused_swiglu.reference_swiglu(gate_up), dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_that_of_the_plain_path(dtype: torch.dtype, device: torch.device) -> None:
    if device.type == "cpu" and dtype == torch.bfloat16:
        pytest.skip("the interpreter cuts bfloat16 off instead of rounding it")
    gate_up = torch.randn(4, 500, device=device).mul(3).to(dtype)
    got, wanted = fused_swiglu.swiglu(gate_up), reference.swiglu(gate_up)
    # Another exp: a silu that is almost half way between two values may go to the other one.
    step = 2.0 * UNIT[dtype]
    torch.testing.assert_close(got, wanted, rtol=2 * step, atol=torch.finfo(dtype).tiny)
    assert (got == wanted).double().mean() > 0.98


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # of the interpreter
def test_saturated_gates_do_not_overflow(device: torch.device) -> None:
    gate = torch.tensor([[-200.0, -90.0, 0.0, 90.0, 200.0]], device=device)
    got = fused_swiglu.swiglu(torch.cat((gate, torch.ones_like(gate)), dim=1))
    torch.testing.assert_close(got, gate.clamp(min=0.0))


def test_no_rows_give_no_rows(device: torch.device) -> None:
    assert fused_swiglu.swiglu(torch.zeros(0, 8, device=device)).shape == (0, 4)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="2F"):
        fused_swiglu.swiglu(torch.zeros(2, 7))
    with pytest.raises(ValueError, match="contiguous"):
        fused_swiglu.swiglu(torch.zeros(8, 2).T)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="programmatic launches need a GPU")
def test_a_chain_of_programmatic_launches_waits_for_its_inputs(device: torch.device) -> None:
    gate_up = torch.randn(2048, 16384, device=device)
    chains = []
    for pdl in (False, True):
        y = gate_up
        for _ in range(4):
            y = fused_swiglu.swiglu(y, pdl=pdl)
        chains.append(y)
    assert torch.equal(*chains)
