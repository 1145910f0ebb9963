"""A checkpoint's weights as plain matrices, for peers that cannot read our quantised folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from qwen_agent.llm.config import read_model_config
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
