"""4-bit products on the tensor cores: the layout anywhere, the compiler where there is one, the kernels on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from qwen_agent.llm.kernels import mma_int4 as module
from qwen_agent.llm.kernels.cuda_source import compile_cubin, has_nvrtc
from qwen_agent.llm.kernels.gemv import Norm, reference_gemv
from qwen_agent.llm.kernels.mma_int4 import (
    MOST_ROWS,
    SOURCE,
    Cut,
    TiledInt4,
    TiledMatMul,
    available,
    cut_for,
    fits,
    mma_int4,
    rows_of_eight,
    tile_int4,
    untile_int4,
    write_out_tiled,
)

with_compiler = pytest.mark.skipif(not has_nvrtc(), reason="cuda.bindings is not installed")
on_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or not available(torch.device("cuda")),
    reason="the kernels need a GPU with mma.m16n8k16, and cuda.bindings",
)

# (rows, columns, group); the last ones are no multiple of 128, and 1000 is one group.
SHAPES = [(256, 2048, 128), (256, 2048, 64), (96, 2048, 32), (320, 2560, 256), (288, 1000, 1000), (64, 1056, 32)]
CUTS = [Cut(warps, blocks, depth) for warps in (4, 8) for blocks in (1, 2) for depth in (1, 2)]
CUTS_OF_EIGHT = [cut for cut in CUTS if cut.blocks * 16 * 8 <= cut.warps * 32]  # a thread stores at most one result
SOME_CUTS = [Cut(4, 1, 2), Cut(8, 2, 1)]
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())


def random_codes(
    rows: int, columns: int, group: int, device: torch.device, *, centred: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """(codes, scales, zeros)."""
    shape = (rows, columns // group)
    q = torch.randint(0, 16, (rows, columns), dtype=torch.uint8, device=device)
    scales = (torch.rand(shape, device=device) * 0.03 + 0.005).half()
    zeros = torch.full(shape, 8, device=device) if centred else torch.randint(0, 16, shape, device=device)
    return q, scales, zeros


def tiled(rows: int, columns: int, group: int, device: torch.device, *, centred: bool = False) -> TiledInt4:
    return tile_int4(*random_codes(rows, columns, group, device, centred=centred))


# ---- the layout -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(
    ("rows", "columns", "group"),
    [
        (32, 128, 128),
        (64, 256, 64),
        (96, 256, 32),
        (32, 512, 256),
        (64, 200, 200),
        (32, 320, 64),
        (32, 96, 32),
        (32, 1000, 1000),
    ],
)
def test_the_layout_holds_every_weight(
    rows: int, columns: int, group: int, centred: bool, device: torch.device
) -> None:
    q, scales, zeros = random_codes(rows, columns, group, device, centred=centred)
    matrix = tile_int4(q, scales, zeros)
    scale, zero = (t.float().repeat_interleave(group, dim=1) for t in (scales, zeros))
    wanted = scale * (q.float() - zero)
    assert (matrix.rows, matrix.columns) == (rows, columns)
    assert matrix.group == (group if group < columns else -(-columns // 128) * 128)
    assert matrix.words.shape == (rows // 16, -(-columns // 128), 2, 32, 4)
    assert (matrix.offsets is None) == centred
    if centred:
        assert torch.equal(untile_int4(matrix), wanted)
    else:  # offsets are rounded to float16
        torch.testing.assert_close(untile_int4(matrix), wanted, rtol=0, atol=0.035 * 8 * 2**-11)


def test_codes_are_where_the_lanes_of_a_warp_hold_them(device: torch.device) -> None:
    q, scales, zeros = random_codes(64, 200, 200, device)
    words = tile_int4(q, scales, zeros).words
    for row in range(0, 64, 5):
        for column in range(0, 200, 3):
            u, g = row % 16 // 8, row % 8
            half, rest = column % 128 // 64, column % 64
            t, word, e = rest % 32 // 8, rest // 32 * 2 + rest % 8 // 4, rest % 4
            held = int(words[row // 16, column // 128, half, 4 * g + t, word])
            assert held >> (4 * (u + 2 * (e // 2)) + 16 * (e % 2)) & 15 == int(q[row, column])


def test_a_tiled_matrix_takes_half_a_byte_for_each_weight(device: torch.device) -> None:
    assert tiled(32, 256, 128, device, centred=True).nbytes == 32 * 256 // 2 + 32 * 2 * 2
    assert tiled(32, 256, 128, device).nbytes == 32 * 256 // 2 + 2 * 32 * 2 * 2


def test_matrices_without_a_kernel_are_refused(device: torch.device) -> None:
    assert all(fits(64, 512, group) for group in (32, 64, 128, 256, 512, 600))
    assert not any(fits(64, 512, group) for group in (16, 48, 96, 200))
    assert not fits(48, 512, 128)
    assert not fits(64, 500, 500)
    assert fits(64, 504, 504)
    with pytest.raises(ValueError, match=r"\[48, 256\] in groups of 128"):
        tiled(48, 256, 128, device)
    with pytest.raises(ValueError, match="in groups of 48"):
        tiled(32, 96, 48, device)


# ---- the compiler -----------------------------------------------------------------------------------------------


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, dict[str, int]]]:
    """Launches only compile; (name, programs, defines) of each is added to the list."""
    launched: list[tuple[str, int, dict[str, int]]] = []

    def build(
        file: Path, name: str, threads: int, defines: tuple[tuple[str, int], ...], device: int
    ) -> Callable[..., None]:
        cubin = compile_cubin(file, "sm_90", dict(defines))
        assert name.encode() in cubin

        def launch(programs: int, arguments: Sequence[object], *, pdl: bool) -> None:
            assert len(arguments) == (8 if name == "mma_int4" else 4)
            launched.append((name, programs, dict(defines)))

        return launch

    monkeypatch.setattr(module, "build", build)
    return launched


@with_compiler
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_source_compiles_without_a_gpu(architecture: str) -> None:
    defines = {"ROWS": 64, "GROUPS": 2, "TOKENS": 1, "BLOCKS": 1, "WARPS": 4, "DEPTH": 2, "WEIGHT": 2, "OUT": 2}
    defines |= {"K": 256, "PARTS": 1, "NORM": 0, "AFTER": 0, "OFFSETS": 1, "PDL": int(architecture == "sm_90")}
    cubin = compile_cubin(SOURCE, architecture, defines)
    assert cubin.startswith(b"\x7fELF")
    assert b"mma_int4" in cubin
    assert b"write_out_int4" not in cubin
    assert b"write_out_int4" in compile_cubin(SOURCE, architecture, defines | {"WRITE_OUT": 1})


@with_compiler
def test_what_does_not_compile_is_reported_in_the_words_of_the_compiler(tmp_path: Path) -> None:
    file = tmp_path / "broken.cu"
    file.write_text('extern "C" __global__ void broken(int* y) { *y = missing + SIZE; }')
    with pytest.raises(RuntimeError, match=r'broken\.cu does not compile for sm_80: [^$]*"missing" is undefined'):
        compile_cubin(file, "sm_80", {"SIZE": 3})
    with pytest.raises(RuntimeError, match="sm_1"):
        compile_cubin(SOURCE, "sm_1", {})


@with_compiler
@pytest.mark.parametrize("cut", CUTS)
def test_every_cut_compiles(cut: Cut, compiled: list[tuple[str, int, dict[str, int]]]) -> None:
    cpu = torch.device("cpu")
    rows, columns, group = 64, 256, 64
    matrix = tiled(rows, columns, group, cpu)
    mma_int4(torch.zeros(columns).half(), matrix, torch.zeros(rows), cut)
    assert compiled[-1][1] == rows // (16 * cut.blocks)
    weight = torch.ones(columns).bfloat16()
    mma_int4(torch.zeros(columns), matrix, torch.zeros(rows // 2), cut, norm=weight, eps=1e-6, after="swiglu", pdl=True)
    assert compiled[-1][1] == rows // 2 // 16
    eight, y = torch.zeros(8, columns).half(), torch.zeros(8, rows)
    if cut in CUTS_OF_EIGHT:
        mma_int4(eight, matrix, y, cut, bias=torch.ones(rows).half(), after="bias")
        assert compiled[-1][2]["TOKENS"] == 8
    else:
        with pytest.raises(RuntimeError, match="a thread stores at most one result"):
            mma_int4(eight, matrix, y, cut)


@with_compiler
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_rows_are_cut_into_eights_or_have_the_matrix_written_out(
    dtype: torch.dtype, compiled: list[tuple[str, int, dict[str, int]]]
) -> None:
    matmul = TiledMatMul(*random_codes(64, 200, 200, torch.device("cpu")))
    for rows, launches in ((1, 1), (8, 1), (20, 3), (MOST_ROWS, MOST_ROWS // 8)):
        compiled.clear()
        assert matmul(torch.ones(1, rows, 200, dtype=dtype)).shape == (1, rows, 64)
        assert [name for name, *_ in compiled] == ["mma_int4"] * launches
    compiled.clear()
    matmul.rows(torch.ones(MOST_ROWS + 1, 200, dtype=dtype), None, torch.zeros(64 * 200 + 9, dtype=dtype))
    assert [(name, programs) for name, programs, _ in compiled] == [("write_out_int4", 2)]


# ---- the kernels ------------------------------------------------------------------------------------------------


def fenced(values: Tensor) -> tuple[Tensor, Tensor]:
    """The values with NaN behind them, and what holds both."""
    room = torch.full((values.numel() + 4096,), torch.nan, dtype=values.dtype, device=values.device)
    room[: values.numel()] = values.flatten()
    return room[: values.numel()].view(values.shape), room


def check(
    matrix: TiledInt4,
    cut: Cut,
    *,
    normed: bool = False,
    after: str = "",
    weights: torch.dtype = torch.float16,
    out: torch.dtype = torch.float32,
    pdl: bool = False,
) -> None:
    device = matrix.words.device
    rows = matrix.rows // (2 if after == "swiglu" else 1)
    x = fenced(torch.randn(matrix.columns, device=device).to(torch.float32 if normed else torch.float16))[0]
    norm = Norm(fenced(torch.randn(matrix.columns, device=device).to(weights))[0], 1e-3) if normed else None
    bias = fenced(torch.randn(rows, device=device).to(weights))[0] if after == "bias" else None
    old = torch.randn(rows, device=device) * 3 if after == "residual" else torch.full((rows,), torch.nan, device=device)
    y, room = fenced(old.to(out))
    wanted = reference_gemv(x, untile_int4(matrix), y, norm=norm, bias=bias, after=after)
    gain, eps = (norm.weight, norm.eps) if norm is not None else (None, 0.0)
    mma_int4(x, matrix, y, cut, norm=gain, eps=eps, bias=bias, after=after, pdl=pdl)
    assert error(y, wanted) < TOLERANCE[out] * (2 if after == "swiglu" else 1)
    assert room[rows:].isnan().all()


@on_gpu
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(
    ("shape", "cut"), [(shape, cut) for shape in SHAPES for cut in CUTS if cut in SOME_CUTS or shape == SHAPES[2]]
)
def test_one_row_matches_the_reference(
    shape: tuple[int, int, int], cut: Cut, centred: bool, device: torch.device
) -> None:
    matrix = tiled(*shape, device, centred=centred)
    for after, normed in (("", False), ("bias", True), ("bias", False), ("residual", False), ("swiglu", True)):
        check(matrix, cut, normed=normed, after=after)


@on_gpu
@pytest.mark.parametrize("weights", TOLERANCE)
@pytest.mark.parametrize("out", TOLERANCE)
def test_weights_and_results_may_be_of_any_type(weights: torch.dtype, out: torch.dtype, device: torch.device) -> None:
    matrix = tiled(256, 2048, 128, device)
    for after in ("", "bias", "swiglu"):
        check(matrix, Cut(), normed=True, after=after, weights=weights, out=out)


@on_gpu
@pytest.mark.parametrize("out", TOLERANCE)
@pytest.mark.parametrize("cut", SOME_CUTS)
@pytest.mark.parametrize(("rows", "columns", "group"), SHAPES)
def test_eight_rows_match_the_reference(
    rows: int, columns: int, group: int, cut: Cut, out: torch.dtype, device: torch.device
) -> None:
    matrix = tiled(rows, columns, group, device)
    x = torch.randn(8, columns, device=device).half()
    bias = torch.randn(rows, device=device).half()
    wanted = x.double() @ untile_int4(matrix).double().T
    for some in (None, bias):
        y, room = fenced(torch.full((8, rows), torch.nan, dtype=out, device=device))
        mma_int4(x, matrix, y, cut, bias=some, after="" if some is None else "bias")
        assert error(y, wanted if some is None else wanted + some.double()) < TOLERANCE[out]
        assert room[8 * rows :].isnan().all()


@on_gpu
@pytest.mark.parametrize("cut", CUTS_OF_EIGHT)
@pytest.mark.parametrize(("rows", "columns", "group"), SHAPES)
def test_each_of_eight_rows_is_what_it_is_alone(
    rows: int, columns: int, group: int, cut: Cut, device: torch.device
) -> None:
    matrix = tiled(rows, columns, group, device)
    x = torch.randn(8, columns, device=device).half()
    together = rows_of_eight(x, matrix, None, cut)
    for i in range(8):
        assert torch.equal(rows_of_eight(x[i : i + 1], matrix, None, cut)[0], together[i])


@on_gpu
def test_a_narrow_result_saturates(device: torch.device) -> None:
    q = torch.full((32, 128), 15, dtype=torch.uint8, device=device)
    q[16:] = 0
    ones = torch.ones(32, 1, device=device)
    y = torch.full((32,), torch.nan, dtype=torch.float16, device=device)
    mma_int4(torch.full((128,), 6e4, device=device).half(), tile_int4(q, ones, 8 * ones), y, Cut())
    assert y.tolist() == [65504.0] * 16 + [-65504.0] * 16


@on_gpu
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns", "group"), SHAPES)
def test_the_matrix_written_out_is_exact(
    rows: int, columns: int, group: int, dtype: torch.dtype, centred: bool, device: torch.device
) -> None:
    matrix = tiled(rows, columns, group, device, centred=centred)
    room = torch.full((rows * columns + 1000,), torch.nan, dtype=dtype, device=device)
    got = write_out_tiled(matrix, room)
    assert got.data_ptr() == room.data_ptr()
    assert torch.equal(got, untile_int4(matrix).to(dtype))
    assert room[rows * columns :].isnan().all()


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 8, 20, 33, 100])
def test_any_number_of_rows(count: int, dtype: torch.dtype, device: torch.device) -> None:
    for rows, columns, group in SHAPES:
        matmul = TiledMatMul(*random_codes(rows, columns, group, device))
        x = torch.randn(2, count, columns, device=device).to(dtype)[:1]
        got = matmul(x)
        assert got.shape == (1, count, rows)
        assert got.dtype == dtype
        wanted = x.double() @ untile_int4(matmul.tiled).double().T
        assert error(got, wanted) < TOLERANCE[dtype]
        bias = torch.randn(rows, device=device).to(dtype)
        room = torch.empty(rows * columns, dtype=dtype, device=device)
        assert error(matmul.rows(x[0], bias, room), wanted[0] + bias.double()) < TOLERANCE[dtype]


@on_gpu
def test_a_chain_of_programmatic_launches_waits_for_its_inputs(device: torch.device) -> None:
    if torch.cuda.get_device_capability(device) < (9, 0):
        pytest.skip("programmatic launches need a GPU of the Hopper generation or later")
    matrix = tiled(4096, 4096, 128, device, centred=True)
    matrix = replace(matrix, scales=matrix.scales / 64)
    norm = torch.ones(4096, device=device).bfloat16()
    start = torch.randn(4096, device=device)
    cut = cut_for(4096, 4096)
    chains = []
    for pdl in (False, True):
        h = start.clone()
        for _ in range(16):
            y = torch.empty(4096, dtype=torch.float16, device=device)
            mma_int4(h, matrix, y, cut, norm=norm, eps=1e-6, pdl=pdl)
            mma_int4(y, matrix, h, cut, after="residual", pdl=pdl)
        chains.append(h)
    assert torch.equal(*chains)
