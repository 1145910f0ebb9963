"""The decoder against numbers made by the original code, and against transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen_agent.llm import load_model
from qwen_agent.llm.rope import ntk_alpha

MODES = {"plain": (False, False), "ntk": (True, False), "logn": (False, True), "ntk_logn": (True, True)}
LENGTHS = (1, 2, 31, 32, 33, 63, 64, 65, 100, 128, 129, 200, 257)
Folder = Callable[..., Path]


def switches(mode: str) -> dict[str, bool]:
    ntk, logn = MODES[mode]
    return {"use_dynamic_ntk": ntk, "use_logn_attn": logn}


@pytest.mark.parametrize("mode", MODES)
def test_logits_equal_the_original(mode: str, qwen1_folder: Folder, golden: dict[str, np.ndarray]) -> None:
    model = load_model(qwen1_folder(**switches(mode)))
    ids = torch.from_numpy(golden["ids"])
    for n in LENGTHS:
        logits = model(ids[:, :n])[0, [0, n // 2, n - 1]]
        assert logits.numpy() == pytest.approx(golden[f"logits/{mode}/{n}"], abs=1e-4)


@pytest.mark.parametrize("prefill", [20, 32, 40, 70])
def test_decoding_keeps_the_alpha_of_the_prompt(
    prefill: int, qwen1_folder: Folder, golden: dict[str, np.ndarray]
) -> None:
    model = load_model(qwen1_folder(**switches("ntk_logn")))
    ids = torch.from_numpy(golden["ids"])
    cache = model.new_cache(prefill)
    rows = [model.last_logits(ids[:, :prefill], cache)]
    rows += [model.last_logits(ids[:, t : t + 1], cache) for t in range(prefill, 100)]
    assert torch.cat(rows).numpy() == pytest.approx(golden[f"decode/ntk_logn/prefill{prefill}"], abs=1e-4)


def test_two_requests_do_not_share_their_alpha(qwen1_folder: Folder, golden: dict[str, np.ndarray]) -> None:
    """The original keeps alpha on the module, where a long request changes what a short one computes."""
    model = load_model(qwen1_folder(**switches("ntk_logn")))
    ids = torch.from_numpy(golden["ids"])
    short = model.new_cache(20)
    model.last_logits(ids[:, :20], short)
    model.last_logits(ids[:, :200], model.new_cache(200))
    row = model.last_logits(ids[:, 20:21], short)[0]
    assert row.numpy() == pytest.approx(golden["decode/ntk_logn/prefill20"][1], abs=1e-4)


def test_left_padding_in_short_text_equals_the_original(qwen1_folder: Folder, golden: dict[str, np.ndarray]) -> None:
    model = load_model(qwen1_folder(**switches("ntk_logn")))
    logits = model(
        torch.from_numpy(golden["batch_short/ids"]), attention_mask=torch.from_numpy(golden["batch_short/mask"])
    )
    assert logits[:, -1].numpy() == pytest.approx(golden["batch_short/last_logits"], abs=1e-4)


def test_left_padding_in_long_text_equals_the_row_alone_unlike_the_original(
    qwen1_folder: Folder, golden: dict[str, np.ndarray]
) -> None:
    """The original looks up LogN at the padded position; its row 1 is off by 0.9."""
    model = load_model(qwen1_folder(**switches("ntk_logn")))
    ids, mask = torch.from_numpy(golden["batch/ids"]), torch.from_numpy(golden["batch/mask"])
    batched = model(ids, attention_mask=mask)[:, -1]
    assert batched[0].numpy() == pytest.approx(golden["batch/last_logits"][0], abs=1e-4)
    for row in range(2):
        alone = model(ids[row][mask[row].bool()][None])[0, -1]
        assert batched[row].numpy() == pytest.approx(alone.numpy(), abs=1e-4)
    assert (batched[1] - torch.from_numpy(golden["batch/last_logits"][1])).abs().max() > 0.5


@pytest.mark.parametrize("pieces", [(40, 60), (1, 99), (33, 1, 66), (50, 49, 1)])
def test_continuation_of_several_tokens_is_causal_unlike_the_original(
    pieces: tuple[int, ...], qwen1_folder: Folder, golden: dict[str, np.ndarray]
) -> None:
    model = load_model(qwen1_folder(**switches("ntk_logn")))
    ids = torch.from_numpy(golden["ids"])[:, :100]
    cache = model.new_cache(100)
    parts = [model(piece, cache) for piece in ids.split(pieces, dim=1)]
    assert torch.cat(parts, dim=1).numpy() == pytest.approx(model(ids).numpy(), abs=1e-4)


def test_right_padding_does_not_reach_real_tokens(qwen1_folder: Folder, golden: dict[str, np.ndarray]) -> None:
    model = load_model(qwen1_folder(**switches("ntk_logn")))
    ids = torch.from_numpy(golden["ids"])[:, :50]
    mask = torch.tensor([[1] * 40 + [0] * 10])
    assert model(ids, attention_mask=mask)[0, :40].numpy() == pytest.approx(model(ids[:, :40])[0].numpy(), abs=1e-4)


def test_a_cache_can_be_cut_back_and_grown(qwen1_folder: Folder, golden: dict[str, np.ndarray]) -> None:
    model = load_model(qwen1_folder())
    ids = torch.from_numpy(golden["ids"])
    cache = model.new_cache(10)
    model(ids[:, :257], cache)  # grows beyond its first block
    cache.truncate(30)
    assert model(ids[:, 30:40], cache).numpy() == pytest.approx(model(ids[:, :40])[:, 30:].numpy(), abs=1e-4)
    with pytest.raises(ValueError, match="cannot cut"):
        cache.truncate(41)


def test_a_batch_of_equal_lengths_decodes_with_a_cache(qwen1_folder: Folder, golden: dict[str, np.ndarray]) -> None:
    model = load_model(qwen1_folder(**switches("ntk_logn")))
    ids = torch.from_numpy(golden["ids"])[0, :80].view(2, 40)
    cache = model.new_cache(39, batch=2)
    model(ids[:, :39], cache)
    cache.alpha = model.new_cache(40).alpha
    assert model(ids[:, 39:], cache).shape == (2, 1, 160)


def test_ntk_alpha_steps(data: Path) -> None:
    report = json.loads((data / "tiny_qwen_golden.json").read_text())["report"]
    for train_length in (2048, 8192):
        for length, alpha in report[f"alpha_seq{train_length}"].items():
            assert ntk_alpha(int(length), train_length) == alpha


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.0125)])
def test_half_precision_stays_close(
    dtype: torch.dtype, tolerance: float, qwen1_folder: Folder, golden: dict[str, np.ndarray]
) -> None:
    folder = qwen1_folder(**switches("ntk_logn"))
    ids = torch.from_numpy(golden["ids"])[:, :64]
    exact, rough = load_model(folder)(ids), load_model(folder, dtype=dtype)(ids)
    assert rough.dtype == dtype
    assert (rough.float() - exact).norm() / exact.norm() < tolerance


TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 150,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}


def randomized(model: torch.nn.Module) -> torch.nn.Module:
    """Fresh models have zero biases and unit norms, which would hide a missing one."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("tied", [True, False])
def test_qwen2_equals_transformers(tied: bool, tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    theirs = randomized(Qwen2ForCausalLM(Qwen2Config(**TINY, tie_word_embeddings=tied, rope_theta=50_000.0)))
    theirs.save_pretrained(tmp_path)
    ids = torch.randint(0, 150, (2, 60))
    with torch.no_grad():
        expected = theirs(ids).logits
    assert load_model(tmp_path)(ids).numpy() == pytest.approx(expected.numpy(), abs=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_qwen3_equals_transformers(tied: bool, tmp_path: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    theirs = randomized(Qwen3ForCausalLM(Qwen3Config(**TINY, head_dim=32, tie_word_embeddings=tied)))
    theirs.save_pretrained(tmp_path)
    ids = torch.randint(0, 150, (1, 100))
    with torch.no_grad():
        expected = theirs(ids).logits
    model = load_model(tmp_path)
    assert model(ids).numpy() == pytest.approx(expected.numpy(), abs=1e-4)
    cache = model.new_cache(60)
    parts = [model(ids[:, :60], cache), *(model(ids[:, t : t + 1], cache) for t in range(60, 100))]
    assert torch.cat(parts, dim=1).numpy() == pytest.approx(expected.numpy(), abs=1e-4)
