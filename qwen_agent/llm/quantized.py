"""Modules that keep their matrix quantised: a linear layer and an embedding that can also be the output head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen_agent.llm.kernels import Codes, MatMul, quantized_matmul
from qwen_agent.llm.quantization import QuantizedWeight, dequantize, dequantize_rows, unpack


class QuantizedLinear(nn.Module):
    """y = x W^T + bias with W in 4 or 8 bits. ``kernel`` names what computes it.

    Where no kernel fits, "dequantize" rebuilds W at every call: the reference, right but slow.
    """

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = weight.in_features, weight.out_features
        self.dtype, self.bits = dtype, weight.bits
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.matmul: MatMul | None
        found = quantized_matmul(Codes(*unpack(weight), weight.bits, ordered=_in_order(weight)), dtype)
        self.kernel, self.matmul = found if found is not None else ("dequantize", None)
        # A packed kernel holds its own copy of the codes; the checkpoint's layout is then not kept.
        self.weight = weight if found is None else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.matmul(x) if self.matmul is not None else F.linear(x, self.written_out())
        return y if self.bias is None else y + self.bias

    def written_out(self) -> Tensor:
        """The matrix [N, K], rebuilt; only where no packed kernel took it over."""
        assert self.weight is not None
        return dequantize(self.weight, self.dtype)


def _in_order(weight: QuantizedWeight) -> bool:
    """True if group g holds the inputs g * G .. (g + 1) * G - 1 (act-order checkpoints may not)."""
    k = torch.arange(weight.in_features, device=weight.g_idx.device)
    group = weight.in_features // weight.scales.shape[0]
    return torch.equal(weight.g_idx.long(), k // group)


class QuantizedEmbedding(nn.Module):
    """Rows of a quantised matrix [V, H], dequantised as they are looked up."""

    def __init__(self, weight: QuantizedWeight, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = weight
        self.dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        return dequantize_rows(self.weight, ids.reshape(-1), self.dtype).view(*ids.shape, self.weight.in_features)

    def as_head(self) -> QuantizedLinear:
        return QuantizedLinear(self.weight, None, self.dtype)
