"""The matrices of a model as products: times one row, fused with its neighbours, or times many.

Every linear module of a Model becomes one of two kinds here: dense, or 4-bit codes in the kernels' layout. What has no
kernel of its own (8 bits, act-order) is written out densely at load, and its name says so: nothing is slow in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
import triton
from torch import Tensor, nn

from qwen_agent.llm.kernels.gemv import Norm, Tile, gemv
from qwen_agent.llm.kernels.gemv_int4 import gemv_int4
from qwen_agent.llm.kernels.matmul_int4 import Int4MatMul
from qwen_agent.llm.kernels.mma_int4 import TiledMatMul, cut_for, mma_int4
from qwen_agent.llm.model import Model
from qwen_agent.llm.quantization import dequantize
from qwen_agent.llm.quantized import QuantizedEmbedding, QuantizedLinear


class Product(Protocol):
    """A matrix [N, K], perhaps with a bias."""

    kernel: str  # what computes it, for reports
    takes: torch.dtype  # of x in ``one`` where no norm comes first
    nbytes: int  # read per row

    def one(
        self,
        x: Tensor,
        y: Tensor,
        *,
        norm: Norm | None = None,
        after: str = "",
        pdl: bool = False,
    ) -> None:
        """One row, as in kernels.gemv."""

    def many(self, x: Tensor) -> Tensor:
        """x [T, K] -> x W^T + bias [T, N]."""


class DenseProduct:
    def __init__(self, weight: Tensor, bias: Tensor | None, kernel: str = "dense") -> None:
        self.weight, self.bias, self.kernel = weight, bias, kernel
        self.takes = weight.dtype
        self.nbytes = weight.numel() * weight.element_size()

    def one(
        self,
        x: Tensor,
        y: Tensor,
        *,
        norm: Norm | None = None,
        after: str = "",
        pdl: bool = False,
    ) -> None:
        after = _with_bias(after, self.bias)
        tile = dense_tile(self.weight.shape[1])
        gemv(x, self.weight, y, tile, norm=norm, bias=self.bias, after=after, pdl=pdl)

    def many(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def _with_bias(after: str, bias: Tensor | None) -> str:
    """What comes after a product that may have a bias."""
    if bias is None:
        return after
    if after:
        raise ValueError(f"a product with a bias cannot be followed by {after}: no Qwen model has one there")
    return "bias"


@dataclass(slots=True)
class Scratch:
    """Room to write out one matrix at a time; as large as the largest that asked for it."""

    dtype: torch.dtype
    room: Tensor | None = None

    def at_least(self, size: int, device: torch.device) -> Tensor:
        if self.room is None or self.room.numel() < size:
            self.room = torch.empty(size, dtype=self.dtype, device=device)
        return self.room


class Int4Product:
    """4 bits by Triton's kernels: where those on the tensor cores cannot be built."""

    takes = torch.float16
    kernel = "int4, Triton"

    def __init__(self, matmul: Int4MatMul, bias: Tensor | None, scratch: Scratch) -> None:
        self.packed, self.bias = matmul.packed, bias
        self.nbytes = self.packed.nbytes
        self._matmul, self._scratch = matmul, scratch
        scratch.at_least(self.packed.rows * self.packed.columns, self.packed.words.device)

    def one(
        self,
        x: Tensor,
        y: Tensor,
        *,
        norm: Norm | None = None,
        after: str = "",
        pdl: bool = False,
    ) -> None:
        after = _with_bias(after, self.bias)
        tile = int4_tile(self.packed.columns, after)
        gemv_int4(x, self.packed, y, tile, norm=norm, bias=self.bias, after=after, pdl=pdl)

    def many(self, x: Tensor) -> Tensor:
        room = self._scratch.at_least(self.packed.rows * self.packed.columns, x.device)
        return self._matmul.rows(x, self.bias, room)


class TiledInt4Product:
    """4 bits on the tensor cores."""

    takes = torch.float16
    kernel = "int4, tensor cores"

    def __init__(self, matmul: TiledMatMul, bias: Tensor | None, scratch: Scratch) -> None:
        self.tiled, self.bias = matmul.tiled, bias
        self.nbytes = self.tiled.nbytes
        self._matmul, self._scratch = matmul, scratch
        scratch.at_least(self.tiled.rows * self.tiled.columns, self.tiled.words.device)

    def one(self, x: Tensor, y: Tensor, *, norm: Norm | None = None, after: str = "", pdl: bool = False) -> None:
        after = _with_bias(after, self.bias)
        cut = cut_for(self.tiled.rows, self.tiled.columns)
        weight, eps = (norm.weight, norm.eps) if norm is not None else (None, 0.0)
        mma_int4(x, self.tiled, y, cut, norm=weight, eps=eps, bias=self.bias, after=after, pdl=pdl)

    def many(self, x: Tensor) -> Tensor:
        room = self._scratch.at_least(self.tiled.rows * self.tiled.columns, x.device)
        return self._matmul.rows(x, self.bias, room)


def dense_tile(columns: int) -> Tile:
    """What was fastest on an H100 (docs/benchmarks.md)."""
    return Tile(2, 256, 8) if columns > 8192 else Tile(2)


def int4_tile(columns: int, after: str) -> Tile:
    """What was fastest on an H100 (docs/benchmarks.md); a norm or SwiGLU needs threads that span the row."""
    threads = max(32, triton.next_power_of_2(-(-columns // 32)))
    if threads > 256 and after not in ("bias", "swiglu", ""):
        threads = 128
    return Tile(4 if after == "swiglu" else 8, threads, max(1, threads // 32))


@dataclass(frozen=True, slots=True)
class LayerWeights:
    attention_norm: Norm
    qkv: Product
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Product
    mlp_norm: Norm
    gate_up: Product
    down: Product


@dataclass(frozen=True, slots=True)
class Weights:
    """All of a Model, ready for the fused kernels; the tensors are the Model's own where they are dense."""

    table: Tensor  # the embedding [V, H]
    layers: tuple[LayerWeights, ...]
    norm: Norm
    head: Product

    def products(self) -> Iterator[tuple[str, Product]]:
        for layer in self.layers:
            yield from (("qkv", layer.qkv), ("out", layer.out), ("gate_up", layer.gate_up), ("down", layer.down))
        yield "head", self.head


def take_weights(model: Model) -> Weights:
    """The weights of a Model that is on its device already."""
    scratch = Scratch(model.dtype)

    def product(module: nn.Module) -> Product:
        return _product(module, scratch)

    def layer(module: Any) -> LayerWeights:
        attention, mlp = module.attention, module.mlp
        return LayerWeights(
            attention_norm=_norm(module.attention_norm),
            qkv=product(attention.qkv),
            q_norm=None if attention.q_norm is None else attention.q_norm.weight,
            k_norm=None if attention.k_norm is None else attention.k_norm.weight,
            out=product(attention.out),
            mlp_norm=_norm(module.mlp_norm),
            gate_up=product(mlp.gate_up),
            down=product(mlp.down),
        )

    layers = tuple(map(layer, model.layers))
    return Weights(_table(model.embed), layers, _norm(model.norm), product(model.head))


def _norm(module: Any) -> Norm:
    return Norm(module.weight.detach(), module.eps)


def _product(module: nn.Module, scratch: Scratch) -> Product:
    if isinstance(module, QuantizedLinear):
        bias = None if module.bias is None else module.bias.detach()
        if isinstance(module.matmul, TiledMatMul):
            return TiledInt4Product(module.matmul, bias, scratch)
        if isinstance(module.matmul, Int4MatMul):
            return Int4Product(module.matmul, bias, scratch)
        return DenseProduct(module.written_out(), bias, f"dense, written out from {module.bits} bits")
    assert isinstance(module, nn.Linear)
    return DenseProduct(module.weight.detach(), None if module.bias is None else module.bias.detach())


def _table(module: nn.Module) -> Tensor:
    if isinstance(module, QuantizedEmbedding):
        return dequantize(module.weight, module.dtype)
    assert isinstance(module, nn.Embedding)
    return module.weight.detach()
