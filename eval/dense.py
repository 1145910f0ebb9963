"""A checkpoint's weights as plain matrices: for peers that cannot read quantised folders, and for speed on a GPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qwen_agent.llm.config import read_model_config
from qwen_agent.llm.local import LocalRuntime, load_runtime
from qwen_agent.llm.quantization import SUFFIXES, QuantizedWeight, dequantize


def dense_checkpoint(folder: Path, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json without its quantisation, and every tensor of model.safetensors, quantised ones rebuilt in dtype."""
    described = json.loads((folder / "config.json").read_text())
    described.pop("quantization_config", None)
    quantization = read_model_config(folder).quantization
    stored = load_file(folder / "model.safetensors")
    dense = {name: tensor for name, tensor in stored.items() if not name.endswith(SUFFIXES)}
    for name in (key.removesuffix(".qweight") for key in stored if key.endswith(".qweight")):
        scheme = quantization.scheme(name) if quantization else None
        assert scheme is not None, name
        dense[f"{name}.weight"] = dequantize(QuantizedWeight.from_tensors(name, stored, scheme), dtype)
    return described, dense


def write_dense(folder: Path, into: Path) -> None:
    """The same checkpoint as a folder with bfloat16 weights."""
    described, weights = dense_checkpoint(folder, torch.bfloat16)
    (into / "config.json").write_text(json.dumps(described))
    plain = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(plain, into / "model.safetensors", {"format": "pt"})
    for tokenizer in (folder / name for name in ("tokenizer.json", "qwen.tiktoken")):
        if tokenizer.is_file():
            shutil.copy(tokenizer, into)


def dense_runtime(folder: Path, device: str) -> LocalRuntime:
    """Our own runtime, computing in bfloat16 with dense weights."""
    with TemporaryDirectory() as scratch:
        write_dense(folder, Path(scratch))
        return load_runtime(scratch, device=device, dtype=torch.bfloat16)
