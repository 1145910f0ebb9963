"""The Triton kernels compile for GPUs that are not here: the interpreter accepts what the compiler does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
SCRIPT = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from qwen_agent.llm.kernels import gemv, gemv_int4, matmul_int4


def check(kernel, types, **constants):
    names = kernel.arg_names
    constants = {name: None for name in names if name not in types} | constants
    signature = {name: types.get(name, "constexpr") for name in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n, t in types.items() if t.startswith("*")}
    source = ASTSource(kernel, signature, constexprs=values, attrs=aligned)
    built = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    print(kernel.__name__, "griddepcontrol.wait" in built.asm["ptx"])


dense = {"x": "*fp32", "norm": "*bf16", "matrix": "*bf16", "bias": "*bf16", "y": "*fp32", "eps": "fp32"}
one = dict(N=64, K=512, ROWS=2, SPAN=32, VEC=8, PDL=True)
check(gemv._gemv, dense, **one, NORM=True, AFTER="bias", UNROLLED=True)
check(gemv._gemv, dense | {"y": "*bf16"}, **one, NORM=True, AFTER="swiglu", UNROLLED=False)
check(gemv._gemv, dense | {"x": "*bf16"}, **one, NORM=False, AFTER="residual", UNROLLED=False)
four = dense | {"matrix": "*i32", "scales": "*fp16"}
for group, offsets in ((128, False), (64, True), (32, True)):
    tables = four | ({"offsets": "*fp16"} if offsets else {})
    one = dict(N=64, K=1024, GROUP=group, ROWS=4, SPAN=32, OFFSETS=offsets, ASM=True, PDL=True)
    check(gemv_int4._short_rows, tables, **one, NORM=True, AFTER="swiglu")
long = {name: four[name] for name in ("x", "matrix", "scales", "bias", "y")} | {"x": "*fp16"}
check(gemv_int4._long_rows, long, **one | dict(K=2048, OFFSETS=False), AFTER="residual")
rows = {"x": "*bf16", "matrix": "*i32", "scales": "*fp16", "y": "*bf16", "T": "i32"}
many = dict(N=64, K=512, GROUP=128, ROWS=32, TOKENS=16, PDL=True)
check(matmul_int4._matmul_int4, rows, **many, OFFSETS=False, BIAS=False, WIDE=False)
"""


def test_they_compile_for_hopper_without_a_gpu() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split().count("True") == 8  # every kernel waits for the one before it
