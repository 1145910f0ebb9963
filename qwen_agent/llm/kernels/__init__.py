"""One dispatch table: which implementation serves an operation on a device and dtype.

A kernel is chosen once, when the weights are loaded, and its name is kept with the weights so that a report can say
what runs. "dequantize" is the reference: right everywhere, slow.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qwen_agent.llm.kernels.cpu_packed import GROUPS, MatMul, int4_linear, int8_linear
from qwen_agent.llm.kernels.reference import attention, rms_norm, swiglu

__all__ = ["Codes", "MatMul", "attention", "quantized_matmul", "rms_norm", "swiglu"]


@dataclass(frozen=True, slots=True)
class Codes:
    """A quantised matrix, unpacked: W[n, k] = scales[n, g(k)] * (q[n, k] - zeros[n, g(k)]).

    q uint8 [N, K]; scales float [N, K/G]; zeros uint8 or int [N, K/G]; ``ordered`` is False when inputs are assigned
    to groups out of order (act-order checkpoints), which only the reference handles.
    """

    q: Tensor
    scales: Tensor
    zeros: Tensor
    bits: int
    ordered: bool = True

    @property
    def group(self) -> int:
        return self.q.shape[1] // self.scales.shape[1]


@dataclass(frozen=True, slots=True)
class _Kernel:
    name: str
    fits: Callable[[Codes, torch.dtype], bool]
    build: Callable[[Tensor, Tensor, Tensor], MatMul]


def _cpu_fits(bits: int) -> Callable[[Codes, torch.dtype], bool]:
    def fits(codes: Codes, dtype: torch.dtype) -> bool:
        here = codes.q.device.type == "cpu" and dtype == torch.bfloat16 and codes.bits == bits and codes.ordered
        aligned = codes.q.shape[0] % 16 == 0 and codes.group % min(GROUPS) == 0
        return here and aligned and hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")

    return fits


def _int4_triton_fits(codes: Codes, dtype: torch.dtype) -> bool:
    if codes.q.device.type != "cuda" or codes.bits != 4 or not codes.ordered or not has_triton():
        return False
    from qwen_agent.llm.kernels.gemv_int4 import fits

    return fits(codes.q.shape[1], codes.group)


def _int4_triton(q: Tensor, scales: Tensor, zeros: Tensor) -> MatMul:
    from qwen_agent.llm.kernels.matmul_int4 import Int4MatMul

    return Int4MatMul(q, scales, zeros)


def _int4_mma_fits(codes: Codes, dtype: torch.dtype) -> bool:
    if codes.q.device.type != "cuda" or codes.bits != 4 or not codes.ordered or dtype == torch.float32:
        return False
    from qwen_agent.llm.kernels.mma_int4 import available, fits

    rows, columns = codes.q.shape
    return available(codes.q.device) and fits(rows, columns, codes.group)


def _int4_mma(q: Tensor, scales: Tensor, zeros: Tensor) -> MatMul:
    from qwen_agent.llm.kernels.mma_int4 import TiledMatMul

    return TiledMatMul(q, scales, zeros)


@functools.cache
def has_triton() -> bool:
    """True if GPU kernels can be compiled here."""
    return importlib.util.find_spec("triton") is not None


_QUANTIZED = (
    _Kernel("int4_mma", _int4_mma_fits, _int4_mma),
    _Kernel("int4_triton", _int4_triton_fits, _int4_triton),
    _Kernel("int4_cpu", _cpu_fits(4), int4_linear),
    _Kernel("int8_cpu", _cpu_fits(8), int8_linear),
)


def quantized_matmul(codes: Codes, dtype: torch.dtype) -> tuple[str, MatMul] | None:
    """The first kernel of the table that computes x @ W.T for these codes, with its name; None if none does."""
    for kernel in _QUANTIZED:
        if kernel.fits(codes, dtype):
            return kernel.name, kernel.build(codes.q, codes.scales, codes.zeros)
    return None
