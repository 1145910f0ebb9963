"""Quantise the embedded model to Int4 with GPTQ, on a CPU, in minutes.

    python training/quantize_embedded.py react-135m react_train --out embedded

reads a Qwen2 checkpoint in int8 groups (``NAME`` int8, ``NAME.scales`` fp16) and the token ids it was trained on, and
writes a folder in the GPTQ layout of Qwen-7B-Chat-Int4: 4-bit layers, and an 8-bit embedding with one scale per row
that also serves as the output head. Layers are taken in order; each matrix is fitted to the inputs that the matrices
quantised before it really produce, and to the outputs that the unquantised model gives.
"""

from __future__ import annotations

import argparse
import copy
import json
import lzma
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from qwen_agent.llm.quantization import (
    QuantizationConfig,
    QuantizedWeight,
    Scheme,
    dequantize,
    quantize_gptq,
    quantize_round,
    split,
)

EMBEDDING = "model.embed_tokens"
EMBEDDING_SCHEME = Scheme(bits=8, group_size=-1, sym=True)
COMPUTE = torch.bfloat16  # of the layers' products; states, norms and moments stay fp32

Quantised = dict[str, QuantizedWeight]
States = list[Tensor]  # one [L, features] per calibration text


@dataclass(frozen=True, slots=True)
class Text:
    """A calibration text: token ids [L], the positions that count [P] and how much [P, 1]."""

    ids: Tensor
    positions: Tensor
    weight: Tensor


@dataclass(frozen=True, slots=True)
class Options:
    """What can be tuned about the fit; ``drift`` in 0..1 is how far to pull towards the unquantised outputs."""

    damping: float
    drift: float
    clip: bool

    def quantise(self, weight: Tensor, hessian: Tensor, drift: Tensor, scheme: Scheme) -> QuantizedWeight:
        target = weight + self.drift * correction(weight, hessian, drift, self.damping)
        return quantize_gptq(target, hessian, scheme, damping=self.damping, clip=self.clip)


def main() -> None:
    args = _arguments()
    started = time.monotonic()
    weights = load_checkpoint(args.checkpoint)
    config = QuantizationConfig(Scheme(4, args.group_size, sym=False), overrides=_overrides(args))
    if args.method == "round":
        quantised = round_all(weights, config)
    else:
        texts = sample_texts(args.data, args)
        print(f"calibrating on {len(texts)} texts, {sum(len(text.ids) for text in texts)} tokens", flush=True)
        model = build_model(args.checkpoint, weights)
        options = Options(args.damping, args.drift, not args.no_clip)
        quantised = quantise_in_order(model, texts, config, options)
    write_folder(args.checkpoint, args.out, weights, quantised, config)
    size = sum(path.stat().st_size for path in args.out.iterdir())
    print(f"{args.out}: {size / 1e6:.2f} MB, {time.monotonic() - started:.0f} s")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder with the int8 weights, config and tokenizer")
    parser.add_argument("data", type=Path, nargs="?", help="folder with tok, off and mask .npy.xz (for gptq)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--method", choices=("gptq", "round"), default="gptq", help="round = no calibration")
    parser.add_argument("--group-size", type=int, default=32, help="inputs that share a scale")
    parser.add_argument("--eight-bit", default="", metavar="REGEX", help="modules to keep in 8 bits")
    parser.add_argument("--texts", type=int, default=128, help="calibration texts")
    parser.add_argument("--tokens", type=int, default=1024, help="longest calibration text; longer ones are skipped")
    parser.add_argument("--answer-weight", type=float, default=4.0, help="weight of trained positions; others count 1")
    parser.add_argument("--prompt-share", type=float, default=0.4, help="share of the other positions that is used")
    parser.add_argument("--damping", type=float, default=0.01, help="share of the mean diagonal added to the Hessian")
    parser.add_argument("--drift", type=float, default=1.0, help="0 fits quantised inputs only, 1 the exact outputs")
    parser.add_argument("--no-clip", action="store_true", help="span each group's full range")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.method == "gptq" and args.data is None:
        parser.error("--method gptq needs the data folder")
    return args


def _overrides(args: argparse.Namespace) -> tuple[tuple[str, Scheme | None], ...]:
    embedding = (f"^{re.escape(EMBEDDING)}$", EMBEDDING_SCHEME)
    if not args.eight_bit:
        return (embedding,)
    return embedding, (args.eight_bit, Scheme(8, args.group_size, sym=False))


def load_checkpoint(folder: Path) -> dict[str, Tensor]:
    """Every tensor in fp32 under its Hugging Face name."""
    stored = load_file(next(folder.glob("*.safetensors")))
    weights = {}
    for name, tensor in stored.items():
        if f"{name}.scales" in stored:
            scales = stored[f"{name}.scales"].float()  # [N, K/G]
            weights[name] = tensor.float() * scales.repeat_interleave(tensor.shape[1] // scales.shape[1], dim=1)
        elif not name.endswith(".scales"):
            weights[name] = tensor.float()
    return weights


def sample_texts(folder: Path, args: argparse.Namespace) -> list[Text]:
    """Whole documents of at most ``args.tokens`` tokens, drawn evenly with a fixed seed."""
    tokens, starts = _read(folder, "tok"), _read(folder, "off")
    answers = np.unpackbits(_read(folder, "mask"))[: len(tokens)].astype(bool)
    random = np.random.default_rng(args.seed)
    short = np.flatnonzero(np.diff(starts) <= args.tokens)
    texts = []
    for index in random.choice(short, args.texts, replace=False):
        span = slice(starts[index], starts[index + 1])
        counts = answers[span] | (random.random(starts[index + 1] - starts[index]) < args.prompt_share)
        weight = np.where(answers[span], args.answer_weight, 1 / args.prompt_share)[counts].astype(np.float32)
        ids = torch.from_numpy(tokens[span].astype(np.int64))
        texts.append(Text(ids, torch.from_numpy(np.flatnonzero(counts)), torch.from_numpy(weight).unsqueeze(1)))
    return texts


def _read(folder: Path, name: str) -> np.ndarray[Any, Any]:
    with lzma.open(folder / f"{name}.npy.xz") as file:
        array: np.ndarray[Any, Any] = np.load(file)  # type: ignore[arg-type]
        return array


def build_model(folder: Path, weights: dict[str, Tensor]) -> Qwen2ForCausalLM:
    model = Qwen2ForCausalLM(Qwen2Config.from_json_file(folder / "config.json"))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise SystemExit(f"the checkpoint does not fit its config: missing {missing}, unexpected {unexpected}")
    return model.eval()


def linear_names(weights: dict[str, Tensor]) -> Iterator[str]:
    return (name.removesuffix(".weight") for name, tensor in weights.items() if tensor.ndim == 2)


def round_all(weights: dict[str, Tensor], config: QuantizationConfig) -> Quantised:
    return {name: quantize_round(weights[f"{name}.weight"], _scheme(config, name)) for name in linear_names(weights)}


def _scheme(config: QuantizationConfig, name: str) -> Scheme:
    scheme = config.scheme(name)
    assert scheme is not None, name
    return scheme


@torch.inference_mode()
def quantise_in_order(
    model: Qwen2ForCausalLM, texts: list[Text], config: QuantizationConfig, options: Options
) -> Quantised:
    """GPTQ through the model, carrying the exact and the quantised states of every text from layer to layer."""
    embedding = quantize_round(model.model.embed_tokens.weight, EMBEDDING_SCHEME)
    table = dequantize(embedding)
    exact = [model.model.embed_tokens(text.ids) for text in texts]
    rounded = [table[text.ids] for text in texts]
    quantised = {EMBEDDING: embedding}
    for index, layer in enumerate(model.model.layers):
        fit = LayerFit(f"model.layers.{index}.", layer, texts, config, options)
        exact, rounded = fit.run(model.model.rotary_emb, exact, rounded)
        quantised |= fit.quantised
        off = sum(float((a - b).square().sum()) for a, b in zip(exact, rounded, strict=True))
        whole = sum(float(a.square().sum()) for a in exact)
        print(f"layer {index + 1}/{len(model.model.layers)}: relative error {(off / whole) ** 0.5:.4f}", flush=True)
    return quantised


class LayerFit:
    """One decoder layer, quantised in the order in which its matrices are used."""

    def __init__(
        self, prefix: str, layer: nn.Module, texts: list[Text], config: QuantizationConfig, options: Options
    ) -> None:
        self.prefix, self.texts, self.config, self.options = prefix, texts, config, options
        self.exact: Any = layer.to(COMPUTE)
        self.rounded: Any = copy.deepcopy(self.exact)
        self.quantised: Quantised = {}

    def run(self, rotary: nn.Module, exact: States, rounded: States) -> tuple[States, States]:
        """Take the states before the layer, return those after it: exact, and through the quantised layer."""

        def both(function: Callable[[Any, Tensor], Tensor], a: States, b: States) -> tuple[States, States]:
            return [function(self.exact, x) for x in a], [function(self.rounded, x) for x in b]

        def attend(layer: Any, x: Tensor) -> Tensor:
            return _attend(layer.self_attn, x, rotary)

        inputs = both(lambda layer, x: _norm(layer.input_layernorm, x), exact, rounded)
        self.fit(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), *inputs)
        inputs = both(attend, *inputs)
        self.fit(("self_attn.o_proj",), *inputs)
        outputs = both(lambda layer, x: _linear(layer.self_attn.o_proj, x), *inputs)
        exact, rounded = _add(exact, outputs[0]), _add(rounded, outputs[1])

        inputs = both(lambda layer, x: _norm(layer.post_attention_layernorm, x), exact, rounded)
        self.fit(("mlp.gate_proj", "mlp.up_proj"), *inputs)
        inputs = both(lambda layer, x: _gate(layer.mlp, x), *inputs)
        self.fit(("mlp.down_proj",), *inputs)
        outputs = both(lambda layer, x: _linear(layer.mlp.down_proj, x), *inputs)
        return _add(exact, outputs[0]), _add(rounded, outputs[1])

    def fit(self, names: tuple[str, ...], exact: States, rounded: States) -> None:
        """Quantise matrices that read the same inputs: ``exact`` before rounding, ``rounded`` as they come now."""
        hessian, drift = moments(self.texts, exact, rounded)
        by_scheme: dict[Scheme, list[str]] = {}
        for name in names:
            by_scheme.setdefault(_scheme(self.config, self.prefix + name), []).append(name)
        for scheme, group in by_scheme.items():
            sources = [self.exact.get_submodule(name).weight.float() for name in group]
            weight = self.options.quantise(torch.cat(sources), hessian, drift, scheme)
            for name, part in zip(group, split(weight, [len(source) for source in sources]), strict=True):
                self.rounded.get_submodule(name).weight.copy_(dequantize(part))
                # its own copy of g_idx: safetensors refuses tensors that share memory
                self.quantised[self.prefix + name] = replace(part, g_idx=part.g_idx.clone())


def moments(texts: list[Text], exact: States, rounded: States) -> tuple[Tensor, Tensor]:
    """Weighted means of y y^T and (x - y) y^T, both [K, K], where y is ``rounded`` and x is ``exact``."""
    size = rounded[0].shape[1]
    hessian, drift = torch.zeros(size, size), torch.zeros(size, size)
    for text, all_x, all_y in zip(texts, exact, rounded, strict=True):
        x, y = all_x[text.positions], all_y[text.positions]
        weighted = y * text.weight
        hessian.addmm_(y.t(), weighted)  # fp32: rounding it to bf16 can make it indefinite
        drift += (x - y).t().to(COMPUTE) @ weighted.to(COMPUTE)
    total = sum(float(text.weight.sum()) for text in texts)
    return hessian / total, drift / total


def correction(weight: Tensor, hessian: Tensor, drift: Tensor, damping: float) -> Tensor:
    """What to add to ``weight`` [N, K] so that on the rounded inputs it gives, in least squares, its exact outputs."""
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian))
    return torch.linalg.solve(damped, (weight @ drift).t()).t()


def _norm(norm: Any, x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), norm.weight.float(), norm.variance_epsilon)


def _linear(linear: Any, x: Tensor) -> Tensor:
    out: Tensor = linear(x.to(COMPUTE))
    return out.float()


def _gate(mlp: Any, x: Tensor) -> Tensor:
    x = x.to(COMPUTE)
    return (F.silu(mlp.gate_proj(x)) * mlp.up_proj(x)).float()


def _attend(attention: Any, x: Tensor, rotary: Any) -> Tensor:
    """Causal attention over one text [L, D], up to but without the output projection: [L, heads * head]."""
    cos, sin = rotary(x, torch.arange(len(x)).unsqueeze(0))
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    heads = (_linear(p, x).view(1, len(x), -1, attention.head_dim).transpose(1, 2) for p in projections)
    q, k, v = heads  # [1, heads, L, head]
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    q, k, v = (heads.to(COMPUTE) for heads in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return out.transpose(1, 2).reshape(len(x), -1).float()


def _add(states: States, more: States) -> States:
    return [a + b for a, b in zip(states, more, strict=True)]


def write_folder(
    source: Path, out: Path, weights: dict[str, Tensor], quantised: Quantised, config: QuantizationConfig
) -> None:
    """Write config, tokenizer and model.safetensors; vectors (norms, biases) are stored in bf16."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items() if tensor.ndim == 1}
    for name, weight in quantised.items():
        tensors |= weight.tensors(name)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    described = json.loads((source / "config.json").read_text()) | {"quantization_config": config.to_dict()}
    (out / "config.json").write_text(json.dumps(described, indent=2) + "\n")
    for name in ("generation_config.json", "tokenizer_config.json"):
        (out / name).write_text((source / name).read_text())
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    compact = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
    (out / "tokenizer.json").write_text(compact, encoding="utf-8")


if __name__ == "__main__":
    main()
