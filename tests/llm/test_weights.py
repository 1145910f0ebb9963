"""Checkpoints that load, and the clear sentence for each kind that does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qwen_agent.errors import CheckpointError, InputError, ModelNotFound, UnsupportedModel
from qwen_agent.llm import load_model
from qwen_agent.llm.quantization import Scheme, dequantize, quantize_round

Folder = Callable[..., Path]
Weights = dict[str, torch.Tensor]
IDS = torch.arange(1, 41)[None]
QUANTIZED = ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj")


@pytest.fixture
def expected(golden: dict[str, np.ndarray], qwen1_folder: Folder) -> torch.Tensor:
    return load_model(qwen1_folder())(IDS)


def rewrite_sharded(folder: Path, weights: Weights, shards: int = 3) -> Path:
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    where = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        save_file({n: weights[n] for n in names[i::shards]}, folder / file)
        where |= dict.fromkeys(names[i::shards], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def test_the_names_of_august_2023_load_too(
    qwen1_folder: Folder, golden_config: dict[str, object], golden_weights: Weights, expected: torch.Tensor
) -> None:
    folder = qwen1_folder()
    old = {
        "architectures": ["QWenLMHeadModel"],
        "n_embd": 64,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 512,
        "ffn_hidden_size": 176,
        "padded_vocab_size": 160,
        "vocab_size": 151,
        "kv_channels": 16,
        "seq_length": 32,
        "layer_norm_epsilon": 1e-6,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "no_bias": True,
        "pos_emb": "rotary",
        "activation": "swiglu",
        "apply_residual_connection_post_layernorm": False,
    }
    (folder / "config.json").write_text(json.dumps(old))
    assert torch.equal(load_model(folder)(IDS), expected)


def test_shards_load(qwen1_folder: Folder, golden_weights: Weights, expected: torch.Tensor) -> None:
    assert torch.equal(load_model(rewrite_sharded(qwen1_folder(), golden_weights))(IDS), expected)


@pytest.mark.parametrize("sharded", [False, True])
def test_pytorch_bin_loads(
    sharded: bool, qwen1_folder: Folder, golden_weights: Weights, expected: torch.Tensor
) -> None:
    folder = qwen1_folder()
    (folder / "model.safetensors").unlink()
    if sharded:
        names = sorted(golden_weights)
        files = {"a.bin": names[::2], "b.bin": names[1::2]}
        for file, mine in files.items():
            torch.save({n: golden_weights[n] for n in mine}, folder / file)
        where = {n: file for file, mine in files.items() for n in mine}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    else:
        torch.save(golden_weights, folder / "pytorch_model.bin")
    assert torch.equal(load_model(folder)(IDS), expected)


def test_a_bin_file_of_before_torch_1_6_loads(
    qwen1_folder: Folder, golden_weights: Weights, expected: torch.Tensor
) -> None:
    folder = qwen1_folder()
    (folder / "model.safetensors").unlink()
    torch.save(golden_weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(load_model(folder)(IDS), expected)


def test_buffers_of_old_checkpoints_are_ignored(
    qwen1_folder: Folder, golden_weights: Weights, expected: torch.Tensor
) -> None:
    folder = qwen1_folder()
    extra = {
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
        "transformer.h.0.attn.rotary_emb.inv_freq": torch.ones(8),
    }
    save_file(golden_weights | extra, folder / "model.safetensors")
    assert torch.equal(load_model(folder)(IDS), expected)


def quantized(weights: Weights, bits: int, group: int, *, sym: bool = True) -> tuple[Weights, Weights]:
    """(the checkpoint AutoGPTQ would write, the dense weights it stands for)."""
    packed, dense = {}, {}
    for name, tensor in weights.items():
        module = name.removesuffix(".weight")
        if module.endswith(QUANTIZED):
            weight = quantize_round(tensor, Scheme(bits, group, sym))
            packed |= weight.tensors(module)
            packed.setdefault(f"{module}.bias", weights.get(f"{module}.bias", torch.zeros(tensor.shape[0])).half())
            dense[name] = dequantize(weight)
        else:
            packed[name] = tensor
            dense[name] = tensor.half().float() if name.endswith("c_attn.bias") else tensor
    return packed | {n: t.half() for n, t in weights.items() if n.endswith("c_attn.bias")}, dense


@pytest.mark.parametrize("separate_file", [False, True])
def test_int4_in_the_layout_of_qwen_7b_chat_int4(
    separate_file: bool, qwen1_folder: Folder, golden_weights: Weights, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """All five matrices of a block, each with a bias of which four are zero, zero - 1 in qzeros, g_idx = k // G."""
    # AutoGPTQ needs widths that are multiples of 8; the tiny FFN of 88 is cut into groups of 8.
    packed, dense = quantized(golden_weights, bits=4, group=8)
    settings = {
        "bits": 4,
        "group_size": 8,
        "damp_percent": 0.01,
        "desc_act": False,
        "sym": True,
        "true_sequential": True,
    }
    folder = qwen1_folder() if separate_file else qwen1_folder(quantization_config={"quant_method": "gptq", **settings})
    if separate_file:
        (folder / "quantize_config.json").write_text(json.dumps(settings))
    save_file({n: t.contiguous() for n, t in packed.items()}, folder / "model.safetensors")
    model = load_model(folder)
    other = tmp_path_factory.mktemp("dense")
    save_file(dense, other / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    (other / "config.json").write_text(json.dumps(config))
    assert model(IDS).numpy() == pytest.approx(load_model(other)(IDS).numpy(), abs=1e-4)
    assert model.layers[0].mlp.gate_up.kernel == "dequantize"


def test_a_nonzero_bias_that_the_model_lacks_is_refused(qwen1_folder: Folder, golden_weights: Weights) -> None:
    packed, _ = quantized(golden_weights, bits=4, group=8)
    packed["transformer.h.1.mlp.w1.bias"] = torch.ones(88).half()
    folder = qwen1_folder(quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 8})
    save_file({n: t.contiguous() for n, t in packed.items()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"transformer\.h\.1\.mlp\.w1\.bias is not zero"):
        load_model(folder)


def test_quantized_tensors_without_a_quantization_config(qwen1_folder: Folder, golden_weights: Weights) -> None:
    packed, _ = quantized(golden_weights, bits=4, group=8)
    folder = qwen1_folder()
    save_file({n: t.contiguous() for n, t in packed.items()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="quantize_config"):
        load_model(folder)


def test_a_missing_tensor_is_named(qwen1_folder: Folder, golden_weights: Weights) -> None:
    folder = qwen1_folder()
    save_file(
        {n: t for n, t in golden_weights.items() if n != "transformer.h.2.ln_2.weight"}, folder / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"no tensor transformer\.h\.2\.ln_2\.weight"):
        load_model(folder)


def test_a_tensor_without_a_place_is_named(qwen1_folder: Folder, golden_weights: Weights) -> None:
    folder = qwen1_folder()
    save_file(golden_weights | {"transformer.h.3.ln_1.weight": torch.ones(64)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"transformer\.h\.3\.ln_1\.weight has no place"):
        load_model(folder)


def test_a_wrong_shape_is_named(qwen1_folder: Folder) -> None:
    with pytest.raises(
        CheckpointError, match=r"w2\.weight has shape \[88, 64\], but config\.json asks for \[100, 64\]"
    ):
        load_model(qwen1_folder(intermediate_size=200))


def test_a_head_that_differs_from_the_embedding_it_is_tied_to(qwen1_folder: Folder) -> None:
    with pytest.raises(CheckpointError, match="ties the head"):
        load_model(qwen1_folder(tie_word_embeddings=True))


def test_a_half_downloaded_file(qwen1_folder: Folder) -> None:
    file = qwen1_folder() / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="incomplete or damaged"):
        load_model(file.parent)


def test_a_missing_shard(qwen1_folder: Folder, golden_weights: Weights) -> None:
    folder = rewrite_sharded(qwen1_folder(), golden_weights)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of 3 weight files, first model-00002-of-00003"):
        load_model(folder)


def test_a_git_lfs_pointer(qwen1_folder: Folder) -> None:
    file = qwen1_folder() / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        load_model(file.parent)


def test_a_bin_file_that_would_run_code(qwen1_folder: Folder) -> None:
    folder = qwen1_folder()
    (folder / "model.safetensors").unlink()
    torch.save({"x": Path("/")}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="damaged or holds more than tensors"):
        load_model(folder)


def test_no_weights(qwen1_folder: Folder) -> None:
    folder = qwen1_folder()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.incomplete").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"has no weights.*cut off"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"no_bias": False}, "no_bias"),
        ({"rotary_pct": 0.5}, "rotary_pct"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
        ({"architectures": ["Qwen2ForCausalLM"], "rope_scaling": {"type": "yarn", "factor": 4}}, "yarn"),
        ({"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True}, "sliding"),
    ],
)
def test_what_is_not_implemented_is_said(changes: dict[str, object], message: str, qwen1_folder: Folder) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        load_model(qwen1_folder(**changes))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"architectures": ["QWenLMHeadModel"]}', "no field hidden_size or n_embd"),
        ('{"architectures": ["QWenLMHeadModel"], "hidden_size": -3}', "hidden_size is -3"),
    ],
)
def test_a_damaged_config_is_named(config: str, message: str, qwen1_folder: Folder) -> None:
    folder = qwen1_folder()
    (folder / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a model folder: it has no config\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["no/such/folder/here", "nonsense", "./missing", ""])
def test_an_unknown_model(name: str) -> None:
    with pytest.raises((ModelNotFound, InputError), match="model"):
        load_model(name)


def test_progress_counts_to_the_end(qwen1_folder: Folder) -> None:
    seen: list[tuple[int, int]] = []
    load_model(qwen1_folder(), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(seen), len(seen))
