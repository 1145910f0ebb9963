"""RMSNorm of rows against float64, and bit by bit against the plain path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from qwen_agent.llm.kernels import fused_norm, reference

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
EPS = 1e-6
# Relative error of one rounding; the interpreter cuts bfloat16 off instead of rounding it.
UNIT = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2**-23}

SMALL = [(1, 64), (3, 100), (2, 1), (5, 37)]
LARGE = [(1, 4096), (2048, 4096), (7, 5120), (33, 3584), (4, 8192), (3, 1000)]


def shapes() -> list[tuple[int, int]]:
    return SMALL + (LARGE if torch.cuda.is_available() else [(2, 1030)])


def close(got: Tensor, wanted: Tensor, roundings: int, dtype: torch.dtype) -> None:
    error = (got.double() - wanted.double()).norm() / wanted.double().norm()
    assert error <= roundings * UNIT[dtype] * (1 if got.is_cuda else 2)


def ulps(got: Tensor, wanted: Tensor) -> int:
    """The most steps of the dtype between two tensors."""
    bits = torch.int32 if got.dtype == torch.float32 else torch.int16
    low = -(2 ** (31 if bits == torch.int32 else 15))
    lines = [t.cpu().view(bits).long() for t in (got, wanted)]
    a, b = (torch.where(line < 0, low - line, line) for line in lines)
    return int((a - b).abs().max())


def poisoned(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype, device=device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", shapes())
def test_rows_are_normalized(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
    x = torch.randn(*shape, device=device).mul(3).to(dtype)
    weight = torch.randn(shape[1], device=device).to(dtype)
    out = poisoned(*shape, dtype=dtype, device=device)
    got = fused_norm.rms_norm(x, weight, EPS, out=out)
    assert got is out
    close(got, fused_norm.reference_rms_norm(x, weight, EPS), 2, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", shapes())
def test_the_sum_and_its_norm_come_in_one_pass(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> None:
    residual, x = (torch.randn(*shape, device=device).to(dtype) for _ in range(2))
    weight = torch.randn(shape[1], device=device).to(dtype)
    out = (poisoned(*shape, dtype=dtype, device=device), poisoned(*shape, dtype=dtype, device=device))
    total, y = fused_norm.add_rms_norm(residual, x, weight, EPS, out=out)
    wanted, normalized = fused_norm.reference_add_rms_norm(residual, x, weight, EPS)
    close(total, wanted, 1, dtype)
    close(y, normalized, 3, dtype)
    if device.type == "cuda" or dtype != torch.bfloat16:
        assert torch.equal(total, residual + x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_is_that_of_the_plain_path(dtype: torch.dtype, device: torch.device) -> None:
    if device.type == "cpu" and dtype == torch.bfloat16:
        pytest.skip("the interpreter cuts bfloat16 off instead of rounding it")
    x = torch.randn(4, 200, device=device).to(dtype)
    weight = torch.randn(200, device=device).to(dtype)
    got, wanted = fused_norm.rms_norm(x, weight, EPS), reference.rms_norm(x, weight, EPS)
    # The sum runs in another order: at most a step before the weight, which can be two after it; float32 shows more.
    assert ulps(got, wanted) <= (8 if dtype == torch.float32 else 2)
    assert dtype == torch.float32 or (got == wanted).double().mean() > 0.98


def test_rows_may_lie_apart(device: torch.device) -> None:
    wide = torch.randn(3, 80, device=device)
    weight = torch.randn(48, device=device)
    got = fused_norm.rms_norm(wide[:, 8:56], weight, EPS)
    close(got, fused_norm.reference_rms_norm(wide[:, 8:56], weight, EPS), 4, torch.float32)


def test_it_works_in_place(device: torch.device) -> None:
    residual, x = torch.randn(3, 70, device=device), torch.randn(3, 70, device=device)
    weight = torch.randn(70, device=device)
    total, y = fused_norm.reference_add_rms_norm(residual, x, weight, EPS)
    fused_norm.add_rms_norm(residual, x, weight, EPS, out=(residual, x))
    close(residual, total, 1, torch.float32)
    close(x, y, 4, torch.float32)


def test_large_and_tiny_values_stay_finite(device: torch.device) -> None:
    x = torch.tensor([[3e4, -3e4, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [6e-8, 0.0, 0.0, 0.0]], device=device).half()
    weight = torch.ones(4, dtype=torch.float16, device=device)
    got = fused_norm.rms_norm(x, weight, EPS)
    torch.testing.assert_close(got, reference.rms_norm(x, weight, EPS))


def test_wrong_arguments_are_named() -> None:
    x, weight = torch.zeros(2, 8), torch.zeros(8)
    with pytest.raises(ValueError, match="float32 \\[8\\]"):
        fused_norm.rms_norm(x, weight.half(), EPS)
    with pytest.raises(ValueError, match="strides"):
        fused_norm.rms_norm(x.T, torch.zeros(2), EPS)
    with pytest.raises(ValueError, match="alike"):
        fused_norm.add_rms_norm(torch.zeros(1, 8), x, weight, EPS)
    with pytest.raises(ValueError, match="at most"):
        fused_norm.rms_norm(torch.zeros(1, 20000), torch.zeros(20000), EPS)


def test_no_rows_give_no_rows(device: torch.device) -> None:
    assert fused_norm.rms_norm(torch.zeros(0, 8, device=device), torch.zeros(8, device=device), EPS).shape == (0, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="programmatic launches need a GPU")
def test_a_chain_of_programmatic_launches_waits_for_its_inputs(device: torch.device) -> None:
    x = torch.randn(2048, 4096, device=device).bfloat16()
    weight = torch.randn(4096, device=device).bfloat16()
    chains = []
    for pdl in (False, True):
        residual, y = x, x
        for _ in range(8):
            residual, y = fused_norm.add_rms_norm(residual, y, weight, EPS, pdl=pdl)
            y = fused_norm.rms_norm(y, weight, EPS, pdl=pdl)
        chains.append((residual, y))
    assert all(torch.equal(a, b) for a, b in zip(*chains, strict=True))
