"""One row times a dense matrix against float64, with all that is fused to it; the beginning of a step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from qwen_agent.llm.kernels.gemv import _UNROLLED, Norm, Tile, embed, gemv, pick_row, reference_gemv

GPU = torch.cuda.is_available()
ROWS = 1021 if GPU else 37  # no multiple of a tile
TILES = [Tile(2), Tile(8, 64, 2)] if GPU else [Tile(16, 8, 1)]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
# Columns: steps along a row, and some more.
SHORT = [(0, 24), (1, 0), (2, 8)] + ([(_UNROLLED, 0)] if GPU else [])
LONG = [(_UNROLLED, 8), (_UNROLLED + 1, 0)]
CASES = [(torch.float32, after, normed) for after in ("", "bias", "residual", "swiglu") for normed in (False, True)]
if GPU:
    CASES += [(dtype, *case) for dtype in (torch.float16, torch.bfloat16) for _, *case in CASES[::3]]
else:
    CASES += [(torch.float16, "bias", True), (torch.bfloat16, "bias", True), (torch.bfloat16, "swiglu", False)]


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())


def fenced(values: Tensor) -> tuple[Tensor, Tensor]:
    """The values with NaN behind them, and what holds both."""
    room = torch.full((values.numel() + 512,), torch.nan, dtype=values.dtype, device=values.device)
    room[: values.numel()] = values.flatten()
    return room[: values.numel()].view(values.shape), room


def check(columns: int, dtype: torch.dtype, tile: Tile, after: str, normed: bool, device: torch.device) -> None:
    """One product of random numbers; what is not to be read is NaN, and what is not to be written stays so."""

    def random(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return fenced(torch.randn(*shape, device=device).to(kind))[0]

    x = random(columns, kind=torch.float32 if normed else dtype)
    matrix = random(ROWS * (2 if after == "swiglu" else 1), columns)
    norm = Norm(random(columns), 1e-3) if normed else None
    bias = random(ROWS) if after == "bias" else None
    if after == "residual":
        y, room = fenced(torch.randn(ROWS, device=device) * 10)
    else:
        y, room = fenced(torch.full((ROWS,), torch.nan, dtype=dtype, device=device))
    wanted = reference_gemv(x, matrix, y, norm=norm, bias=bias, after=after)
    gemv(x, matrix, y, tile, norm=norm, bias=bias, after=after)
    assert error(y, wanted) < TOLERANCE[y.dtype]
    assert room[ROWS:].isnan().all()


@pytest.mark.parametrize(("dtype", "after", "normed"), CASES)
def test_short_rows_match_the_reference(dtype: torch.dtype, after: str, normed: bool, device: torch.device) -> None:
    tile = TILES[0]
    step = tile.threads * 16 // dtype.itemsize
    for steps, more in SHORT:
        check(steps * step + more, dtype, tile, after, normed, device)


@pytest.mark.parametrize(("dtype", "after", "normed"), CASES)
def test_long_rows_match_the_reference(dtype: torch.dtype, after: str, normed: bool, device: torch.device) -> None:
    tile = TILES[0]
    step = tile.threads * 16 // dtype.itemsize
    for steps, more in LONG if GPU or after == "swiglu" else LONG[:1]:
        check(steps * step + more, dtype, tile, after, normed, device)


def test_rows_that_are_a_multiple_of_the_tile(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROWS", 32)
    for tile in TILES:
        step = tile.threads * 4
        for columns in (_UNROLLED * step, 2 * step + 4, (_UNROLLED + 1) * step):
            check(columns, torch.float32, tile, "swiglu", True, device)


def test_a_wide_activation_meets_a_narrow_matrix(device: torch.device) -> None:
    x = torch.randn(200, device=device)
    matrix = torch.randn(ROWS, 200, device=device).bfloat16()
    y = torch.full((ROWS,), torch.nan, device=device)
    gemv(x, matrix, y, TILES[0])
    assert error(y, reference_gemv(x, matrix, y)) < 1e-5


def test_the_same_input_gives_the_same_bits(device: torch.device) -> None:
    x, matrix = torch.randn(300, device=device), torch.randn(ROWS, 300, device=device)
    outs = [torch.full((ROWS,), torch.nan, device=device) for _ in range(2)]
    for y in outs:
        gemv(x, matrix, y, TILES[0])
    assert torch.equal(*outs)


def test_a_narrow_result_saturates(device: torch.device) -> None:
    x = torch.full((96,), 6e4, dtype=torch.float16, device=device)
    matrix = torch.ones(3, 96, dtype=torch.float16, device=device)
    matrix[1] = -1
    matrix[2, 1:] = 0
    y = torch.full((3,), torch.nan, dtype=torch.float16, device=device)
    gemv(x, matrix, y, TILES[0])
    assert y.tolist() == [65504.0, -65504.0, float(x[0])]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_step_begins_with_the_row_of_its_token_and_moves_on(dtype: torch.dtype, device: torch.device) -> None:
    table = torch.randn(7, 33, device=device).to(dtype)
    h, room = fenced(torch.full((33,), torch.nan, device=device))
    place = torch.tensor([-1, 8, 64], device=device)
    following = torch.tensor([40], device=device)
    for step, token in enumerate((3, 6, 0)):
        embed(torch.tensor([token], device=device), table, h, place, following)
        assert torch.equal(h, table[token].float())
        assert place.tolist() == [40 + step, 8, 64]
        assert following.tolist() == [41 + step]
    assert room[33:].isnan().all()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_last_real_row_is_picked(dtype: torch.dtype, device: torch.device) -> None:
    rows = torch.randn(9, 33, device=device).to(dtype)
    for count in (1, 5, 9):
        h, room = fenced(torch.full((33,), torch.nan, device=device))
        pick_row(rows, torch.tensor([100, count, 256], device=device), h)
        assert torch.equal(h, rows[count - 1].float())
        assert room[33:].isnan().all()


@pytest.mark.skipif(not GPU, reason="programmatic launches need a GPU")
def test_a_chain_of_programmatic_launches_waits_for_its_inputs(device: torch.device) -> None:
    if torch.cuda.get_device_capability(device) < (9, 0):
        pytest.skip("programmatic launches need a GPU of the Hopper generation or later")
    matrix = (torch.randn(4096, 4096, device=device) / 64).bfloat16()
    norm = Norm(torch.ones(4096, device=device).bfloat16(), 1e-6)
    start = torch.randn(4096, device=device)
    chains = []
    for pdl in (False, True):
        h = start.clone()
        for _ in range(16):
            y = torch.empty_like(h)
            gemv(h, matrix, y, Tile(2), norm=norm, pdl=pdl)
            gemv(y, matrix, h, Tile(2), after="residual", pdl=pdl)
        chains.append(h)
    assert torch.equal(*chains)
