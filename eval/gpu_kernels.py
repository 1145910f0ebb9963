"""How close each product of a decode step comes to the bandwidth of the memory, for several tilings.

    python eval/gpu_kernels.py                    the tilings in use
    python eval/gpu_kernels.py --sweep --json OUT all of them, fastest first

Shapes are Qwen-7B's. Every product runs in a CUDA graph over matrices that together are several times the second-level
cache, one launch after the other as in a step; bytes are those of the matrix, and are set against a device-to-device
copy measured in the same run (bytes read plus written). Needs a CUDA device.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwen_agent.llm.cuda.products import dense_tile, int4_tile
from qwen_agent.llm.kernels.gemv import Norm, Tile, gemv
from qwen_agent.llm.kernels.gemv_int4 import PackedInt4, gemv_int4
from qwen_agent.llm.kernels.mma_int4 import Cut, TiledInt4, cut_for, mma_int4

COLD = 400 * 2**20  # bytes of matrices in rotation: eight times the second-level cache of an H100


@dataclass(frozen=True)
class Op:
    """One product of the step: matrix [rows, columns], what comes before and after it."""

    name: str
    rows: int
    columns: int
    norm: bool
    after: str


OPS = (
    Op("qkv", 12288, 4096, True, "bias"),
    Op("out", 4096, 4096, False, "residual"),
    Op("gate_up", 22016, 4096, True, "swiglu"),
    Op("down", 4096, 11008, False, "residual"),
    Op("head", 151936, 4096, True, ""),
)
PRECISIONS = ("bf16", "int4", "int4-triton")
Variant = Tile | Cut


def main() -> None:
    args = _arguments()
    copy = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; copy {copy:.0f} GB/s", flush=True)
    cases = [
        (op, precision, tile)
        for op, precision in product(OPS, args.precision)
        if not (op.name == "head" and precision != "bf16")
        for tile in (_tilings(op, precision) if args.sweep else [_in_use(op, precision)])
    ]
    if args.sweep:
        _compile_all(cases)
    rows = []
    for op, precision in dict.fromkeys((op, precision) for op, precision, _ in cases):
        found = [_timed(op, precision, tile, copy) for o, p, tile in cases if (o, p) == (op, precision)]
        rows += sorted(found, key=lambda row: row["us"])
    _report(rows, args.best)
    if args.json:
        args.json.write_text(json.dumps({"copy GB/s": copy, "rows": rows}, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true", help="try every tiling")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--best", type=int, default=4, help="rows to print for each product")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


def _tilings(op: Op, precision: str) -> list[Variant]:
    if precision == "int4":
        found = [Cut(w, b, d) for w, b, d in product((2, 4, 8), (1, 2), (1, 2, 3, 4))]
        return [cut for cut in found if cut.blocks == 1 or op.after != "swiglu"]
    if precision == "bf16":
        shapes = ((64, 2), (128, 4), (256, 8))
        return [Tile(r, threads, warps) for r, (threads, warps) in product((1, 2, 4, 8), shapes)]
    return [_in_use(op, precision)]


def _in_use(op: Op, precision: str) -> Variant:
    if precision == "int4":
        return cut_for(op.rows, op.columns)
    return dense_tile(op.columns) if precision == "bf16" else int4_tile(op.columns, op.after)


def _compile_all(cases: list[tuple[Op, str, Variant]]) -> None:
    """Fill the compiler's cache on disk from several processes: the timing itself must run alone."""
    triton = [case for case in cases if isinstance(case[2], Tile)]
    with ProcessPoolExecutor(10, mp_context=get_context("spawn")) as pool:
        list(pool.map(_compile, triton, chunksize=4))


def _compile(case: tuple[Op, str, Variant]) -> None:
    next(_launches(*case, copies=1))()
    torch.cuda.synchronize()


def _timed(op: Op, precision: str, tile: Variant, copy: float) -> dict[str, Any]:
    size = op.rows * op.columns * (2.0 if precision == "bf16" else 0.5 + 2 / 128)
    copies = max(2, min(16, int(COLD / size)))
    launches = list(_launches(op, precision, tile, copies))
    seconds = graph_seconds(lambda: [launch() for launch in launches]) / copies
    rate = size / seconds / 1e9
    return {
        "op": op.name,
        "precision": precision,
        "cut": ", ".join(f"{name} {value}" for name, value in asdict(tile).items()),
        "us": seconds * 1e6,
        "GB/s": rate,
        "of copy": rate / copy,
    }


def _launches(op: Op, precision: str, tile: Any, copies: int) -> Iterator[Callable[[], None]]:
    """The product over one matrix after the other."""
    device = torch.device("cuda")
    width = op.rows // 2 if op.after == "swiglu" else op.rows
    weight = torch.ones(op.columns, device=device, dtype=torch.bfloat16) if op.norm else None
    bias = torch.zeros(op.rows, device=device, dtype=torch.bfloat16) if op.after == "bias" else None
    between = torch.bfloat16 if precision == "bf16" else torch.float16  # dtype of what one product hands to the next
    entry = torch.randn(op.columns, device=device, dtype=torch.float32 if op.norm else between)
    y = torch.zeros(width, device=device, dtype=between if op.after == "swiglu" else torch.float32)
    norm = Norm(weight, 1e-6) if weight is not None else None
    for _ in range(copies):
        if precision == "bf16":
            matrix = torch.randn((op.rows, op.columns), device=device, dtype=torch.bfloat16)
            yield partial(gemv, entry, matrix, y, tile, norm=norm, bias=bias, after=op.after, pdl=True)
        elif precision == "int4":
            tiled = random_tiled(op.rows, op.columns, device)
            options: dict[str, Any] = {"norm": weight, "eps": 1e-6, "bias": bias, "after": op.after, "pdl": True}
            yield partial(mma_int4, entry, tiled, y, tile, **options)
        else:
            packed = random_int4(op.rows, op.columns, device)
            yield partial(gemv_int4, entry, packed, y, tile, norm=norm, bias=bias, after=op.after, pdl=True)


def random_int4(rows: int, columns: int, device: torch.device) -> PackedInt4:
    """Random codes in groups of 128, as in Qwen-7B-Chat-Int4."""
    words, scales = _random_codes(rows, columns, device)
    return PackedInt4(words, scales, None, columns, 128)


def random_tiled(rows: int, columns: int, device: torch.device) -> TiledInt4:
    """The same in the tensor cores' layout."""
    words, scales = _random_codes(rows, columns, device)
    shape = (rows // 16, columns // 128, 2, 32, 4)
    return TiledInt4(words.view(shape), scales.view(rows // 16, -1, 16), None, rows, columns, 128)


def _random_codes(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    words = torch.randint(-(2**31), 2**31, (rows, columns // 8), device=device, dtype=torch.int64).to(torch.int32)
    return words, torch.rand((rows, columns // 128), device=device).half() * 0.01


def graph_seconds(launch: Callable[[], object], repeat: int = 15) -> float:
    """Median time of what ``launch`` launches, replayed as a graph."""
    launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    graph.replay()
    times = []
    for _ in range(repeat):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def copy_bandwidth() -> float:
    """GB/s of a device-to-device copy of 2 GiB, bytes read plus written; the median of ten."""
    source = torch.randint(0, 255, (2 * 2**30,), dtype=torch.uint8, device="cuda")
    target: Tensor = torch.empty_like(source)
    times = []
    for _ in range(12):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return 2 * source.numel() / statistics.median(times) / 1e9


def _report(rows: list[dict[str, Any]], best: int) -> None:
    print(f"{'op':8} {'':11} {'cut':46} {'us':>8} {'GB/s':>6} {'of copy':>8}")
    for op, precision in dict.fromkeys((row["op"], row["precision"]) for row in rows):
        of_op = [row for row in rows if (row["op"], row["precision"]) == (op, precision)]
        for row in of_op[:best]:
            figures = f"{row['us']:8.1f} {row['GB/s']:6.0f} {row['of copy']:8.2f}"
            print(f"{op:8} {precision:11} {row['cut']:46} {figures}")


if __name__ == "__main__":
    main()
