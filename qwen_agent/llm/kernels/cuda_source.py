"""Kernels written in CUDA C++: compiled at load by NVRTC, launched on PyTorch's stream. No toolkit, no nvcc.

NVRTC and the bindings to it come with PyTorch's CUDA builds (`cuda-bindings`).
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@functools.cache
def has_nvrtc() -> bool:
    """True if CUDA C++ can be compiled here."""
    try:
        return importlib.util.find_spec("cuda.bindings.nvrtc") is not None
    except ModuleNotFoundError:
        return False


class Kernel:
    """One compiled function."""

    def __init__(self, function: Any, threads: int) -> None:
        self._function, self._threads = function, threads

    def __call__(self, programs: int, arguments: Sequence[Tensor | float | None], *, pdl: bool) -> None:
        """Launch on the current stream; tensors are passed as addresses, None as null, floats as float32."""
        from cuda.bindings import driver

        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = programs, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = self._threads, 1, 1
        config.hStream = torch.cuda.current_stream().cuda_stream
        if pdl:
            attribute = driver.CUlaunchAttribute()
            attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
            config.attrs, config.numAttrs = [attribute], 1
        values = tuple(_value(argument) for argument in arguments)
        types = tuple(ctypes.c_float if isinstance(v, float) else ctypes.c_void_p for v in values)
        _check(driver.cuLaunchKernelEx(config, self._function, (values, types), 0))


def _value(argument: Tensor | float | None) -> float | int:
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    return 0 if argument is None else argument


@functools.cache
def build(file: Path, name: str, threads: int, defines: tuple[tuple[str, int], ...], device: int) -> Kernel:
    """Compile ``file`` with ``defines`` for a device and load the function ``name``."""
    from cuda.bindings import driver

    torch.cuda.current_stream(device)  # the device's context exists from here on
    major, minor = torch.cuda.get_device_capability(device)
    cubin = compile_cubin(file, f"sm_{major}{minor}", dict(defines))
    module = _check(driver.cuModuleLoadData(cubin))
    return Kernel(_check(driver.cuModuleGetFunction(module, name.encode())), threads)


def compile_cubin(file: Path, architecture: str, defines: Mapping[str, int]) -> bytes:
    """Machine code for an architecture such as "sm_90". Needs no GPU. RuntimeError with the compiler's words."""
    from cuda.bindings import nvrtc

    options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17"]
    options += [f"-D{name}={value}".encode() for name, value in defines.items()]
    program = _check(nvrtc.nvrtcCreateProgram(file.read_bytes(), file.name.encode(), 0, [], []))
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = b" " * _check(nvrtc.nvrtcGetProgramLogSize(program))
        _check(nvrtc.nvrtcGetProgramLog(program, log))
        words = log.decode(errors="replace").strip(" \n\0")
        raise RuntimeError(f"{file.name} does not compile for {architecture}: {words}")
    cubin = b" " * _check(nvrtc.nvrtcGetCUBINSize(program))
    _check(nvrtc.nvrtcGetCUBIN(program, cubin))
    return cubin


def _check(answer: tuple[Any, ...]) -> Any:
    """The result of a call of the bindings; RuntimeError names the failure."""
    status, *results = answer
    if int(status) != 0:
        raise RuntimeError(f"a call of the CUDA driver or compiler failed: {status!r}")
    return results[0] if results else None
