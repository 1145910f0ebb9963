"""The GPTQ layout: golden numbers from an independent implementation, round trips, and what GPTQ buys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qwen_agent.errors import CheckpointError, UnsupportedModel
from qwen_agent.llm.quantization import (
    SUFFIXES,
    QuantizationConfig,
    QuantizedWeight,
    Scheme,
    choose_grid,
    concatenate,
    dequantize,
    dequantize_rows,
    pack,
    quantize_gptq,
    quantize_round,
    split,
    unpack,
)

GOLDEN = Path(__file__).parents[1] / "data" / "gptq_golden.npz"
SCHEMES = st.builds(Scheme, st.sampled_from((4, 8)), st.sampled_from((32, 64, 128, -1)), st.booleans())


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def stored(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"layer.{suffix}": golden[suffix] for suffix in SUFFIXES}


def random_weight(rows: int = 16, columns: int = 128, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_a_real_layer_dequantises_to_the_golden_numbers(golden: dict[str, Tensor]) -> None:
    weight = QuantizedWeight.from_tensors("layer", stored(golden), Scheme(4, 128))
    assert (weight.in_features, weight.out_features) == (256, 64)
    dense = dequantize(weight)
    assert torch.equal(dense.t(), golden["dequant"])
    y = golden["x"].float() @ dense.t() + golden["bias"].float()
    torch.testing.assert_close(y, golden["y"].float(), atol=2e-3, rtol=1e-3)  # y was computed in fp16


def test_packing_what_was_unpacked_gives_the_stored_tensors(golden: dict[str, Tensor]) -> None:
    weight = QuantizedWeight.from_tensors("layer", stored(golden), Scheme(4, 128))
    again = pack(*unpack(weight), bits=4, group_size=128, g_idx=weight.g_idx)
    for name, tensor in again.tensors("layer").items():
        assert torch.equal(tensor, stored(golden)[name])


@settings(deadline=None, max_examples=40)
@given(SCHEMES, st.integers(1, 4), st.integers(0, 2**31))
def test_unpack_returns_what_was_packed(scheme: Scheme, rows: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    n, k = rows * 8, 256
    groups = 1 if scheme.group_size == -1 else k // scheme.group_size
    q = torch.randint(0, 2**scheme.bits, (n, k), generator=random, dtype=torch.uint8)
    zeros = torch.randint(1, 2**scheme.bits + 1, (n, groups), generator=random, dtype=torch.int16)
    scales = torch.rand(n, groups, generator=random).half()
    weight = pack(q, scales, zeros, bits=scheme.bits, group_size=scheme.group_size)
    for found, expected in zip(unpack(weight), (q, scales, zeros), strict=True):
        assert torch.equal(found, expected)


@settings(deadline=None, max_examples=40)
@given(SCHEMES, st.integers(0, 2**31), st.floats(1e-6, 1e3))
def test_rounding_errs_by_half_a_step(scheme: Scheme, seed: int, size: float) -> None:
    dense = random_weight(columns=256, seed=seed) * size
    weight = quantize_round(dense, scheme)
    group = 256 if scheme.group_size == -1 else scheme.group_size
    step = weight.scales.float().t().repeat_interleave(group, dim=1)
    # rounding the zero point of an asymmetric grid can cut another half step off one end
    allowed = 0.5 if scheme.sym else 1.0
    assert ((dequantize(weight) - dense).abs() <= 1.001 * allowed * step).all()


@settings(deadline=None, max_examples=40)
@given(SCHEMES, st.floats(1e-9, 1e3))
def test_scales_are_the_same_number_in_fp16_and_bf16(scheme: Scheme, size: float) -> None:
    scales, zeros = choose_grid(random_weight() * size, scheme)
    assert torch.equal(scales.half().float(), scales)
    assert torch.equal(scales.bfloat16().float(), scales)
    assert (zeros >= 1).all() and (zeros <= 2**scheme.bits - 1).all()


def test_a_group_of_zeros_stays_zero() -> None:
    for sym in (True, False):
        assert not dequantize(quantize_round(torch.zeros(8, 64), Scheme(4, 32, sym))).any()


def test_zero_points_are_stored_minus_one() -> None:
    weight = quantize_round(random_weight(), Scheme(4, 128, sym=True))
    assert (weight.qzeros == 0x77777777).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_looking_up_rows_equals_rows_of_the_whole(bits: int) -> None:
    weight = quantize_round(random_weight(64, 96), Scheme(bits, 32, sym=False))
    ids = torch.tensor([[3, 0], [63, 3]])
    assert torch.equal(dequantize_rows(weight, ids), dequantize(weight)[ids])


def test_looking_up_one_row_of_an_embedding_with_one_scale_per_row() -> None:
    weight = quantize_round(random_weight(64, 96), Scheme(8, -1))
    assert torch.equal(dequantize_rows(weight, torch.tensor(7)), dequantize(weight)[7])


def test_a_permuted_g_idx_is_followed() -> None:
    g_idx = torch.arange(64).remainder(2).int()
    q, zeros = torch.ones(8, 64, dtype=torch.uint8), torch.full((8, 2), 8)
    weight = pack(q, torch.tensor([[1.0, 2.0]]).expand(8, 2), zeros, bits=4, group_size=32, g_idx=g_idx)
    assert dequantize(weight)[0, :4].tolist() == [-7.0, -14.0, -7.0, -14.0]


def test_fused_matrices_hold_the_rows_of_both() -> None:
    one, two = (quantize_round(random_weight(rows, seed=rows), Scheme(4, 32, sym=False)) for rows in (8, 24))
    fused = concatenate([one, two])
    assert torch.equal(dequantize(fused), torch.cat([dequantize(one), dequantize(two)]))


def test_splitting_undoes_fusing() -> None:
    parts = [quantize_round(random_weight(rows, seed=rows), Scheme(4, 32, sym=False)) for rows in (8, 24)]
    for part, again in zip(parts, split(concatenate(parts), [8, 24]), strict=True):
        assert all(torch.equal(getattr(part, suffix), getattr(again, suffix)) for suffix in SUFFIXES)


def test_splitting_inside_a_word_of_zeros_is_refused() -> None:
    with pytest.raises(CheckpointError, match="multiples of 8"):
        split(quantize_round(random_weight(), Scheme(4, 32)), [4, 12])


@pytest.mark.parametrize(("other", "why"), [(Scheme(8, 32), "bits"), (Scheme(4, 64), "group_size")])
def test_matrices_with_different_schemes_are_not_fused(other: Scheme, why: str) -> None:
    weights = [quantize_round(random_weight(), scheme) for scheme in (Scheme(4, 32), other)]
    with pytest.raises(CheckpointError, match=why):
        concatenate(weights)


def test_matrices_with_different_g_idx_are_not_fused() -> None:
    one = quantize_round(random_weight(), Scheme(4, 32))
    two = pack(*unpack(one), bits=4, group_size=32, g_idx=one.g_idx.flip(0))
    with pytest.raises(CheckpointError, match="desc_act"):
        concatenate([one, two])


@pytest.mark.parametrize(
    ("bits", "sym", "clip"), [(4, False, True), (4, True, True), (4, False, False), (8, True, True)]
)
def test_gptq_loses_less_output_than_rounding_on_correlated_inputs(bits: int, sym: bool, clip: bool) -> None:
    mixing = random_weight(64, 256, seed=1)
    inputs = random_weight(2000, 64, seed=2) @ mixing + 0.1 * random_weight(2000, 256, seed=3)  # [samples, K]
    dense, scheme = random_weight(32, 256, seed=4), Scheme(bits, 64, sym)
    candidates = quantize_round(dense, scheme), quantize_gptq(dense, inputs.t() @ inputs, scheme, clip=clip)
    rounded, fitted = (((dequantize(w) - dense) @ inputs.t()).square().mean().item() for w in candidates)
    assert fitted < 0.6 * rounded


def test_gptq_with_independent_inputs_is_rounding() -> None:
    dense, scheme = random_weight(), Scheme(4, 32, sym=False)
    fitted = quantize_gptq(dense, torch.eye(128), scheme, clip=False)
    assert torch.equal(fitted.qweight, quantize_round(dense, scheme).qweight)


def test_gptq_keeps_inputs_that_were_never_used() -> None:
    hessian = torch.eye(128)
    hessian[5, 5] = 0
    error = dequantize(quantize_gptq(random_weight(), hessian, Scheme(8, 32))) - random_weight()
    assert error.abs().max() < 0.05


def test_gptq_refuses_a_hessian_that_is_none() -> None:
    with pytest.raises(CheckpointError, match="positive definite"):
        quantize_gptq(random_weight(), -torch.eye(128), Scheme(4, 32))


@pytest.mark.parametrize(
    ("suffix", "tensor", "message"),
    [
        ("qweight", torch.zeros(31, 64, dtype=torch.int32), r"layer.qweight has the shape \[31, 64\].*\[32, 64\]"),
        ("qzeros", torch.zeros(2, 9, dtype=torch.int32), r"layer.qzeros has the shape \[2, 9\].*\[2, 8\]"),
        ("qweight", torch.zeros(32, 64), r"layer\.qweight is torch\.float32"),
        ("g_idx", torch.full((256,), 2, dtype=torch.int32), r"layer\.g_idx names a group outside 0\.\.1"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    golden: dict[str, Tensor], suffix: str, tensor: Tensor, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        QuantizedWeight.from_tensors("layer", stored(golden) | {f"layer.{suffix}": tensor}, Scheme(4, 128))


def test_a_missing_tensor_is_named(golden: dict[str, Tensor]) -> None:
    tensors = stored(golden)
    del tensors["layer.scales"]
    with pytest.raises(CheckpointError, match=r"no layer\.scales"):
        QuantizedWeight.from_tensors("layer", tensors, Scheme(4, 128))


@pytest.mark.parametrize(
    ("q", "zeros", "shape"), [(16, 8, (8, 64)), (0, 0, (8, 64)), (0, 17, (8, 64)), (0, 8, (8, 60)), (0, 8, (6, 64))]
)
def test_values_that_cannot_be_stored_are_refused(q: int, zeros: int, shape: tuple[int, int]) -> None:
    values, points = torch.full(shape, q), torch.full((shape[0], 1), zeros)
    with pytest.raises(CheckpointError):
        pack(values, torch.ones(shape[0], 1), points, bits=4, group_size=-1)


def test_groups_that_do_not_divide_the_inputs_are_refused() -> None:
    with pytest.raises(CheckpointError, match="groups of 48"):
        quantize_round(random_weight(), Scheme(4, 48))


def test_the_config_of_qwen_is_read() -> None:
    config = QuantizationConfig.from_dict(
        {"bits": 4, "group_size": 128, "damp_percent": 0.01, "desc_act": False, "sym": True, "true_sequential": True}
    )
    assert config == QuantizationConfig(Scheme(4, 128, sym=True))
    assert config.scheme("transformer.h.0.attn.c_attn") == Scheme(4, 128, sym=True)


def test_the_first_matching_override_decides() -> None:
    dynamic = {
        "-:.*o_proj": {},
        r"+:model\.embed_tokens$": {"bits": 8, "group_size": -1},
        ".*proj": {"group_size": 32},
    }
    config = QuantizationConfig.from_dict(
        {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": False, "dynamic": dynamic}
    )
    assert config.scheme("model.embed_tokens") == Scheme(8, -1, sym=False)
    assert config.scheme("model.layers.3.self_attn.o_proj") is None
    assert config.scheme("model.layers.3.self_attn.q_proj") == Scheme(4, 32, sym=False)
    assert config.scheme("lm_head") == Scheme(4, 64, sym=False)
    assert QuantizationConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "fields",
    [
        {"quant_method": "awq", "bits": 4},
        {"bits": 3},
        {"bits": 4, "checkpoint_format": "gptq_v2"},
    ],
)
def test_other_methods_are_refused_by_name(fields: dict[str, object]) -> None:
    with pytest.raises(UnsupportedModel):
        QuantizationConfig.from_dict(fields)


@pytest.mark.parametrize("fields", [{"quant_method": "gptq"}, {"bits": 4, "group_size": 0}])
def test_a_config_that_makes_no_sense_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(CheckpointError):
        QuantizationConfig.from_dict(fields)
