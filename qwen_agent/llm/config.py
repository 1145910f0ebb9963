"""What a checkpoint says about itself (ModelConfig) and what a caller asks of a generation (GenerationConfig)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_agent.errors import CheckpointError, InputError, UnsupportedModel

if TYPE_CHECKING:
    from qwen_agent.llm.grammar import Grammar
    from qwen_agent.llm.quantization import QuantizationConfig
    from qwen_agent.types import Prompt

SUPPORTED = ("QWenLMHeadModel", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape and the maths of a decoder, in one vocabulary for all supported families.

    ``ffn`` is the real width of the MLP (Qwen-1 checkpoints state twice that). ``train_length`` is the length
    that the dynamic NTK and LogN formulas are relative to (Qwen-1 ``seq_length``); ``window`` is the most
    tokens a request may hold.
    """

    architecture: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    norm_eps: float
    rope_base: float
    train_length: int
    window: int
    qkv_bias: bool
    qk_norm: bool
    tied: bool
    dynamic_ntk: bool = False
    logn: bool = False
    eos_ids: tuple[int, ...] = ()
    quantization: QuantizationConfig | None = None


def read_model_config(folder: Path) -> ModelConfig:
    """Read ``config.json`` (and ``quantize_config.json`` where that is all there is) of a checkpoint folder.

    Raises CheckpointError if the file is missing or not JSON or lacks a field, UnsupportedModel if the
    architecture, or an option of it that changes the maths, is not implemented.
    """
    raw = _read_json(folder / "config.json")
    architectures = raw.get("architectures") or ["(none)"]
    architecture = architectures[0]
    if architecture not in SUPPORTED:
        raise UnsupportedModel(
            f"{folder / 'config.json'} says architecture {architecture!r}; supported are {', '.join(SUPPORTED)}"
        )
    fields = _Fields(raw, folder / "config.json")
    quantization = _read_quantization(raw, folder)
    if architecture == "QWenLMHeadModel":
        return _qwen1(fields, quantization)
    return _qwen2_or_3(fields, architecture, quantization)


def _qwen1(fields: _Fields, quantization: QuantizationConfig | None) -> ModelConfig:
    """Qwen 1: both naming schemes (2023-08 ``n_embd`` ..., 2023-09 ``hidden_size`` ...)."""
    hidden = fields.integer("hidden_size", "n_embd")
    heads = fields.integer("num_attention_heads", "n_head")
    if not fields.get("no_bias", default=True):
        raise UnsupportedModel(f"{fields.path} says no_bias=false; only Qwen checkpoints without extra biases exist")
    if float(fields.get("rotary_pct", default=1.0)) != 1.0:
        raise UnsupportedModel(f"{fields.path} says rotary_pct={fields.get('rotary_pct')}; only 1.0 is implemented")
    train_length = fields.integer("seq_length", default=2048)
    return ModelConfig(
        architecture="QWenLMHeadModel",
        # 2023-08 files keep the rows of the embedding in padded_vocab_size and the tokenizer's size in vocab_size.
        vocab=fields.integer("padded_vocab_size", "vocab_size"),
        hidden=hidden,
        layers=fields.integer("num_hidden_layers", "n_layer"),
        heads=heads,
        kv_heads=heads,
        head_dim=fields.integer("kv_channels", default=hidden // heads),
        ffn=fields.integer("intermediate_size", "ffn_hidden_size") // 2,
        norm_eps=float(fields.get("layer_norm_epsilon", default=1e-6)),
        rope_base=float(fields.get("rotary_emb_base", default=10000.0)),
        train_length=train_length,
        window=fields.integer("max_position_embeddings", "n_positions", default=8192),
        qkv_bias=True,
        qk_norm=False,
        tied=bool(fields.get("tie_word_embeddings", default=False)),
        dynamic_ntk=bool(fields.get("use_dynamic_ntk", default=False)),
        logn=bool(fields.get("use_logn_attn", default=False)),
        eos_ids=_ids(fields.get("eos_token_id", default=None)),
        quantization=quantization,
    )


def _qwen2_or_3(fields: _Fields, architecture: str, quantization: QuantizationConfig | None) -> ModelConfig:
    hidden = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads")
    rope = fields.get("rope_parameters", default=None) or fields.get("rope_scaling", default=None) or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UnsupportedModel(
            f"{fields.path} asks for rope scaling {kind!r}; remove it to run within the plain window"
        )
    if fields.get("use_sliding_window", default=False):
        raise UnsupportedModel(f"{fields.path} says use_sliding_window=true, which is not implemented; set it to false")
    if fields.get("hidden_act", default="silu") != "silu":
        raise UnsupportedModel(
            f"{fields.path} says hidden_act={fields.get('hidden_act')!r}; only 'silu' is implemented"
        )
    qwen3 = architecture == "Qwen3ForCausalLM"
    if qwen3 and fields.get("attention_bias", default=False):
        raise UnsupportedModel(f"{fields.path} says attention_bias=true; Qwen3 checkpoints have none")
    window = fields.integer("max_position_embeddings", default=32768)
    return ModelConfig(
        architecture=architecture,
        vocab=fields.integer("vocab_size"),
        hidden=hidden,
        layers=fields.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", default=heads),
        head_dim=fields.integer("head_dim", default=hidden // heads),
        ffn=fields.integer("intermediate_size"),
        norm_eps=float(fields.get("rms_norm_eps", default=1e-6)),
        rope_base=float(rope.get("rope_theta", fields.get("rope_theta", default=10000.0))),
        train_length=window,
        window=window,
        qkv_bias=not qwen3,
        qk_norm=qwen3,
        tied=bool(fields.get("tie_word_embeddings", default=False)),
        eos_ids=_ids(fields.get("eos_token_id", default=None)),
        quantization=quantization,
    )


def _read_quantization(raw: Mapping[str, Any], folder: Path) -> QuantizationConfig | None:
    from qwen_agent.llm.quantization import QuantizationConfig

    found = raw.get("quantization_config")
    if found is None and (folder / "quantize_config.json").is_file():
        found = _read_json(folder / "quantize_config.json")
    return None if found is None else QuantizationConfig.from_dict(found)


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is not a model folder: it has no {path.name}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}): download it again") from None
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, not a JSON object: download it again")
    return loaded


class _Fields:
    """Look-ups in a config that know the field's other names and name the file when one is missing."""

    def __init__(self, raw: Mapping[str, Any], path: Path) -> None:
        self.raw = raw
        self.path = path

    def get(self, *names: str, default: Any = ...) -> Any:
        for name in names:
            if name in self.raw:
                return self.raw[name]
        if default is ...:
            raise CheckpointError(f"{self.path} has no field {' or '.join(names)}")
        return default

    def integer(self, *names: str, default: int | None = None) -> int:
        value = self.get(*names, default=... if default is None else default)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise CheckpointError(f"{self.path}: {names[0]} is {value!r}, not a positive integer")
        return value


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """What to generate: how long, how to sample, where to stop.

    ``temperature`` 0 is greedy. ``top_k`` 0 and ``top_p`` 1.0 are off. ``seed`` None draws from entropy.
    ``stop`` are strings matched on decoded text; they and what follows are never part of the output.
    ``grammar`` limits what may be written (grammar.py); a runtime that cannot constrain ignores it. ``choices`` are
    continuations whose relative probability at the end of the prompt is wanted (Chunk.weights).

    ``logprobs`` asks for the log-probability of each token that is written, with that many likeliest alternatives
    (0: the token's alone; None: nothing is computed). ``prompt_logprobs`` asks for the same of the prompt's tokens;
    the prompt is then read whole, whatever of it is in the KV cache. A runtime that cannot tell gives none.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    grammar: Grammar | None = None
    choices: tuple[Prompt, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        rules = (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0.0 <= self.temperature < float("inf"), "0 (greedy) or a positive finite number"),
            ("top_k", self.top_k >= 0, "0 (off) or a positive integer"),
            ("top_p", 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("repetition_penalty", 0.0 < self.repetition_penalty < float("inf"), "a positive number (1.0 is off)"),
            ("stop", all(self.stop), "strings that are not empty"),
            ("logprobs", self.logprobs is None or self.logprobs >= 0, "0 or more, or None"),
            ("prompt_logprobs", self.prompt_logprobs is None or self.prompt_logprobs >= 0, "0 or more, or None"),
        )
        for name, good, wanted in rules:
            if not good:
                raise InputError(f"{name}={getattr(self, name)!r} cannot be used: it must be {wanted}")
