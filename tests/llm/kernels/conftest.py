"""Kernels run on the GPU where there is one, else through Triton's interpreter on the CPU, which needs tiny shapes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

try:
    from importlib.metadata import version

    TRITON = version("triton")
except ModuleNotFoundError:
    TRITON = ""
# The repairs below are made for this interpreter; a GPU takes any version.
if not TRITON or (not torch.cuda.is_available() and not TRITON.startswith("3.6.")):
    collect_ignore_glob = ["test_*.py"]

# Triton decides at decoration time, so this stands before any module with kernels is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def _repair_interpreter() -> None:
    """What the interpreter of Triton 3.6 gets wrong: numpy 2.4's scalars, and bfloat16, which it keeps as uint16."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch_tensor, convert = interpreter._patch_lang_tensor, interpreter._convert_float
    dot, cast = interpreter.InterpreterBuilder.create_dot, interpreter.InterpreterBuilder.cast_impl

    def patch_tensor_and_index(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        tensor.__index__ = lambda self: self.handle.data.item()

    def convert_rounding(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(data, source, target, mode)
        rounded = torch.from_numpy(np.array(data, dtype=np.float32)).bfloat16()
        return rounded.view(torch.int16).numpy().view(np.uint16)

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def dot_of_wide(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, widened(a), widened(b), *rest)

    def cast_by_way_of_float32(self: Any, handle: Any, target: Any) -> Any:
        if tl.bfloat16 in (handle.dtype.scalar, target.scalar) and handle.dtype.scalar != target.scalar:
            handle = cast(self, handle, tl.float32) if handle.dtype.scalar != tl.float32 else handle
        return cast(self, handle, target)

    interpreter._patch_lang_tensor = patch_tensor_and_index
    interpreter._convert_float = convert_rounding
    interpreter.InterpreterBuilder.create_dot = dot_of_wide
    interpreter.InterpreterBuilder.cast_impl = cast_by_way_of_float32


def _hasten_interpreter() -> None:
    """What the interpreter of Triton 3.6 does again for each call of a function or each value: most of its time."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch_language, numpy_type = interpreter._patch_lang, interpreter._get_np_dtype
    patched: set[int] = set()
    numpy_types: dict[str, np.dtype[Any]] = {}

    def patch_once(function: Any) -> Any:
        modules = {id(value) for value in function.__globals__.values() if value is tl or value is tl.core}
        if not modules <= patched:
            patched.update(modules)
            patch_language(function)
        return interpreter._LangPatchScope()

    def known_numpy_type(kind: Any) -> np.dtype[Any]:
        name = kind.scalar.name
        if name not in numpy_types:
            numpy_types[name] = numpy_type(kind.scalar)
        return numpy_types[name]

    interpreter._patch_lang = patch_once
    interpreter._get_np_dtype = known_numpy_type


if os.environ.get("TRITON_INTERPRET") == "1" and TRITON.startswith("3.6."):
    _repair_interpreter()
    _hasten_interpreter()


@dataclass(frozen=True, slots=True)
class Cache:
    """One layer's cache as the kernels see it, full of random tokens."""

    keys: Tensor  # [KV, capacity, D]
    values: Tensor
    key_scales: Tensor | None  # float16 [KV, capacity], with int8
    value_scales: Tensor | None
    pages: Tensor  # int64 [4, layers]; only the column of ``layer`` holds addresses
    layer: int

    @property
    def tensors(self) -> list[Tensor]:
        return [t for t in (self.keys, self.values, self.key_scales, self.value_scales) if t is not None]

    def place(self, start: int, count: int) -> Tensor:
        return torch.tensor([start, count, self.keys.shape[1]], device=self.keys.device)

    def forget_from(self, start: int) -> None:
        """NaN (in the scales, if the codes have none) from token ``start`` on: nothing may read that."""
        for tensor in self.tensors:
            if tensor.is_floating_point():
                tensor[:, start:] = torch.nan


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels under test run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def new_cache(device: torch.device) -> Callable[[int, int, int, torch.dtype], Cache]:
    """(kv_heads, capacity, head_dim, dtype) -> Cache."""

    def build(kv_heads: int, capacity: int, head_dim: int, dtype: torch.dtype) -> Cache:
        shape = (kv_heads, capacity, head_dim)
        key_scales = value_scales = None
        if dtype == torch.int8:
            keys, values = (torch.randint(-127, 128, shape, dtype=dtype, device=device) for _ in range(2))
            key_scales, value_scales = ((torch.rand(shape[:2], device=device) * 0.02 + 0.001).half() for _ in range(2))
        else:
            keys, values = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
        tensors = (keys, values, key_scales, value_scales)
        pages = torch.zeros(4, 3, dtype=torch.int64, device=device)
        pages[:, 1] = torch.tensor([0 if t is None else t.data_ptr() for t in tensors])
        return Cache(keys, values, key_scales, value_scales, pages, layer=1)

    return build


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes milliseconds for each program, so there it runs few and large ones."""
    if torch.cuda.is_available():
        return
    from qwen_agent.llm.cuda import products
    from qwen_agent.llm.kernels import decode_attention, suffix_attention, token_choice
    from qwen_agent.llm.kernels.gemv import Tile

    monkeypatch.setattr(products, "dense_tile", lambda columns: Tile(128, 16, 1))
    monkeypatch.setattr(products, "int4_tile", lambda columns, after: Tile(128, 16, 1))
    monkeypatch.setattr(decode_attention, "SPLITS", 2)
    monkeypatch.setattr(suffix_attention, "_MOST_SPLITS", 2)
    monkeypatch.setattr(token_choice, "_PROGRAMS", 2)
