"""4-bit matrices: their layout, times one row and a few rows, and written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from qwen_agent.llm.kernels.gemv import Norm, Tile, reference_gemv
from qwen_agent.llm.kernels.gemv_int4 import PackedInt4, fits, gemv_int4, pack_int4, unpack_int4
from qwen_agent.llm.kernels.matmul_int4 import MOST_ROWS, Int4MatMul, matmul_int4, write_out_int4

GPU = torch.cuda.is_available()
ROWS = 1021 if GPU else 37  # no multiple of a tile
# (columns, group); the last ones are no multiple of 128. 200 and 1600 are one group.
SHAPES = (
    [(2048, 128), (2048, 64), (2048, 32), (2560, 256), (1600, 1600), (1504, 32), (1984, 64)]
    if GPU
    else [(256, 128), (512, 256), (200, 200), (160, 32), (192, 64)]
)
ALL = SHAPES + ([] if GPU else [(256, 64), (256, 32)])
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
# On a GPU 16 products are summed in float16.
SUMMED = 4e-3 if GPU else 1e-5


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())


def fenced(values: Tensor) -> tuple[Tensor, Tensor]:
    """The values with NaN behind them, and what holds both."""
    room = torch.full((values.numel() + 4096,), torch.nan, dtype=values.dtype, device=values.device)
    room[: values.numel()] = values.flatten()
    return room[: values.numel()].view(values.shape), room


def random_codes(
    rows: int, columns: int, group: int, device: torch.device, *, centred: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """(codes, scales, zeros)."""
    shape = (rows, columns // group)
    q = torch.randint(0, 16, (rows, columns), dtype=torch.uint8, device=device)
    scales = (torch.rand(shape, device=device) * 0.03 + 0.005).half()
    zeros = torch.full(shape, 8, device=device) if centred else torch.randint(0, 16, shape, device=device)
    return q, scales, zeros


def packed(rows: int, columns: int, group: int, device: torch.device, *, centred: bool = False) -> PackedInt4:
    return pack_int4(*random_codes(rows, columns, group, device, centred=centred))


def threads_for(columns: int) -> int:
    """As many as span a row."""
    threads = 32 if GPU else 1
    while threads * 32 < columns:
        threads *= 2
    return threads


def check(matrix: PackedInt4, tile: Tile, after: str, normed: bool, out: torch.dtype, device: torch.device) -> None:
    rows, columns = matrix.rows // (2 if after == "swiglu" else 1), matrix.columns
    x = fenced(torch.randn(columns, device=device).to(torch.float32 if normed else torch.float16))[0]
    norm = Norm(fenced(torch.randn(columns, device=device).half())[0], 1e-3) if normed else None
    bias = fenced(torch.randn(rows, device=device).half())[0] if after == "bias" else None
    old = torch.randn(rows, device=device) * 3 if after == "residual" else torch.full((rows,), torch.nan, device=device)
    y, room = fenced(old.to(out))
    wanted = reference_gemv(x, unpack_int4(matrix), y, norm=norm, bias=bias, after=after)
    gemv_int4(x, matrix, y, tile, norm=norm, bias=bias, after=after)
    assert error(y, wanted) < max(SUMMED, TOLERANCE[out])
    assert room[rows:].isnan().all()


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("columns", "group"), [*ALL, (128, 128), (96, 32), (100, 100)])
def test_the_layout_holds_every_weight(columns: int, group: int, centred: bool, device: torch.device) -> None:
    q, scales, zeros = random_codes(21, columns, group, device, centred=centred)
    matrix = pack_int4(q, scales, zeros)
    wide = (t.float().repeat_interleave(group, dim=1) for t in (scales, zeros))
    scale, zero = wide
    wanted = scale * (q.float() - zero)
    # One group of any length is one of whole blocks.
    assert (matrix.rows, matrix.columns) == (21, columns)
    assert matrix.group == (group if group < columns else -(-columns // 128) * 128)
    assert (matrix.offsets is None) == centred
    if centred:
        assert torch.equal(unpack_int4(matrix), wanted)
    else:  # offsets are rounded to float16
        torch.testing.assert_close(unpack_int4(matrix), wanted, rtol=0, atol=0.035 * 8 * 2**-11)


def test_a_packed_matrix_takes_half_a_byte_for_each_weight(device: torch.device) -> None:
    assert packed(32, 256, 128, device, centred=True).nbytes == 32 * 256 // 2 + 32 * 2 * 2
    assert packed(32, 256, 128, device).nbytes == 32 * 256 // 2 + 2 * 32 * 2 * 2


def test_groups_without_a_kernel_are_refused(device: torch.device) -> None:
    assert all(fits(512, group) for group in (32, 64, 128, 256, 512, 600))
    assert not any(fits(512, group) for group in (16, 48, 96, 200))
    with pytest.raises(ValueError, match="group size 48"):
        packed(4, 96, 48, device)


AFTER = [("", True), ("", False), ("bias", True), ("residual", False), ("swiglu", True)]
SPANNED = (
    [(*shape, *after, centred) for shape in SHAPES for after in AFTER for centred in (True, False)]
    if GPU
    else [(*shape, "bias", True, False) for shape in ALL]
    + [(*shape, "swiglu", False, True) for shape in ALL]
    + [(160, 32, *after, centred) for after in AFTER for centred in (True, False)]
)


@pytest.mark.parametrize(("columns", "group", "after", "normed", "centred"), SPANNED)
def test_rows_that_the_threads_span(
    columns: int, group: int, after: str, normed: bool, centred: bool, device: torch.device
) -> None:
    threads = threads_for(columns)
    matrix = packed(ROWS * (2 if after == "swiglu" else 1), columns, group, device, centred=centred)
    check(matrix, Tile(8 if GPU else 64, threads, max(1, threads // 32)), after, normed, torch.float32, device)


@pytest.mark.parametrize("after", ["bias", "residual", "swiglu"])
def test_programs_share_the_rows(after: str, device: torch.device) -> None:
    columns, group = SHAPES[0]
    threads = threads_for(columns)
    matrix = packed(ROWS * (2 if after == "swiglu" else 1), columns, group, device)
    check(matrix, Tile(8, threads, max(1, threads // 32)), after, after != "residual", torch.float32, device)


def test_whole_tiles_need_no_mask(device: torch.device) -> None:
    for group in (128, 32):
        columns = 2048 if GPU else 256
        threads = threads_for(columns)
        check(packed(64, columns, group, device), Tile(16, threads), "swiglu", True, torch.float32, device)


LONG = (
    [(*shape, after, centred) for shape in SHAPES for after in ("", "bias", "residual") for centred in (True, False)]
    if GPU
    else [(*shape, "bias", False) for shape in ALL]
    + [(512, 128, "residual", True), (512, 128, "residual", False), (160, 32, "", True)]
)


@pytest.mark.parametrize(("columns", "group", "after", "centred"), LONG)
def test_rows_longer_than_the_threads(
    columns: int, group: int, after: str, centred: bool, device: torch.device
) -> None:
    tile = Tile(8, 32, 1) if GPU else Tile(64, 4, 1)
    assert tile.threads * 32 < columns
    check(packed(ROWS, columns, group, device, centred=centred), tile, after, False, torch.float32, device)


@pytest.mark.parametrize("out", [torch.float16, torch.bfloat16])
def test_a_result_may_be_narrow(out: torch.dtype, device: torch.device) -> None:
    columns, group = SHAPES[0]
    threads = threads_for(columns)
    check(packed(2 * ROWS, columns, group, device), Tile(64, threads, 4), "swiglu", True, out, device)


def test_a_narrow_result_saturates(device: torch.device) -> None:
    q = torch.full((2, 128), 15, dtype=torch.uint8, device=device)
    q[1] = 0
    ones = torch.ones(2, 1, device=device)
    x = torch.full((128,), 6e4, dtype=torch.float16, device=device)
    y = torch.full((2,), torch.nan, dtype=torch.float16, device=device)
    gemv_int4(x, pack_int4(q, ones, 8 * ones), y, Tile(16, 32 if GPU else 4, 1))
    assert y.tolist() == [65504.0, -65504.0]


def test_a_norm_or_swiglu_needs_threads_that_span_a_row(device: torch.device) -> None:
    matrix = packed(8, 256, 128, device)
    x, y = torch.randn(256, device=device), torch.zeros(8, device=device)
    with pytest.raises(ValueError, match="4 threads do not span rows of 256"):
        gemv_int4(x, matrix, y, Tile(8, 4, 1), norm=Norm(torch.ones(256, device=device), 1e-6))
    with pytest.raises(ValueError, match="do not span"):
        gemv_int4(x.half(), matrix, y[:4], Tile(8, 4, 1), after="swiglu")


MATMULS = (
    [(rows, *SHAPES[0]) for rows in (1, 3, 16, 33, 64, 70)] + [(17, *shape) for shape in SHAPES]
    if GPU
    else [(1, 160, 32), (3, 256, 128), (17, 192, 64), (64, 200, 200), (70, 512, 256)]
)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "columns", "group"), MATMULS)
def test_a_few_rows_at_once(rows: int, columns: int, group: int, dtype: torch.dtype, device: torch.device) -> None:
    for centred, biased in ((True, True), (False, False)) if GPU else ((rows == 3, rows in (3, 64)),):
        matrix = packed(ROWS, columns, group, device, centred=centred)
        x = fenced(torch.randn(rows, columns, device=device).to(dtype))[0]
        bias = fenced(torch.randn(ROWS, device=device).to(dtype))[0] if biased else None
        wanted = x.double() @ unpack_int4(matrix).double().T
        got = matmul_int4(x, matrix, bias)
        assert got.shape == (rows, ROWS)
        assert got.dtype == dtype
        assert error(got, wanted if bias is None else wanted + bias.double()) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("centred", [True, False])
def test_the_matrix_written_out(dtype: torch.dtype, centred: bool, device: torch.device) -> None:
    for columns, group in ALL if GPU or dtype == torch.float16 else [(160, 32), (512, 256)]:
        matrix = packed(ROWS, columns, group, device, centred=centred)
        size = ROWS * columns
        room = torch.full((size + 1000,), torch.nan, dtype=dtype, device=device)
        got = write_out_int4(matrix, room)
        assert got.data_ptr() == room.data_ptr()
        assert room[size:].isnan().all()
        wanted = unpack_int4(matrix)
        if GPU:  # a fused multiply-add
            torch.testing.assert_close(got.float(), wanted, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
        else:
            assert torch.equal(got, wanted.to(dtype))


@pytest.mark.parametrize("rows", [5, MOST_ROWS + 1])
def test_both_ways_of_many_rows_agree_with_the_matrix(rows: int, device: torch.device) -> None:
    columns, group = SHAPES[0]
    q, scales, zeros = random_codes(ROWS, columns, group, device)
    matmul = Int4MatMul(q, scales, zeros)
    x = torch.randn(1, rows, columns, device=device)
    got = matmul(x)
    assert got.shape == (1, rows, ROWS)
    assert error(got, x.double() @ unpack_int4(matmul.packed).double().T) < 1e-5
