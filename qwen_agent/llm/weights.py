"""Checkpoint files -> Model: safetensors (sharded or not) and pytorch_model.bin, three families of names, GPTQ.

Every tensor of the checkpoint is used exactly once, or the load fails and names it.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from qwen_agent.errors import CheckpointError, InputError
from qwen_agent.llm.config import ModelConfig, read_model_config
from qwen_agent.llm.hub import resolve_model
from qwen_agent.llm.model import Model
from qwen_agent.llm.quantization import SUFFIXES, QuantizedWeight, concatenate
from qwen_agent.llm.quantized import QuantizedEmbedding, QuantizedLinear

# Buffers that old checkpoints carry and that are derived from the config.
_DERIVED = re.compile(r".*\.(rotary_emb\.inv_freq|attn\.masked_bias|attn\.bias)$")
Progress = Callable[[int, int], None]


def load_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> Model:
    """Load a checkpoint folder (or "embedded", or a hub id) as a Model on ``device`` with activations in ``dtype``.

    Quantised matrices stay quantised and use the kernel that the dispatch table has for the device and dtype.
    ``progress(done, total)`` is called per module. Raises ModelError with the file, the tensor and the fix.
    """
    folder = resolve_model(path)
    config = read_model_config(folder)
    with torch.device("meta"):
        model = Model(config)
    checkpoint = Checkpoint(folder)
    slots = list(_slots(config))
    for done, (name, sources) in enumerate(slots, start=1):
        module = _load_module(model.get_submodule(name), name, sources, checkpoint, config, _Target(device, dtype))
        _replace(model, name, module)
        if progress is not None:
            progress(done, len(slots))
    if config.tied:
        model.head = _tied_head(model.embed, checkpoint, config)
    checkpoint.check_all_used()
    return model.eval()


class Checkpoint:
    """The tensors of a folder by name, read when asked for, each at most once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._readers = dict(_open_folder(folder))
        self._unused = {name for name in self._readers if not _DERIVED.match(name)}

    def __contains__(self, name: str) -> bool:
        return name in self._readers

    def take(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """The tensor ``name``; CheckpointError if it is missing, was already used, or has another shape."""
        if name not in self._readers:
            raise CheckpointError(f"{self.folder} has no tensor {name}: it is incomplete or of another model")
        if name not in self._unused:
            raise CheckpointError(f"{self.folder}: tensor {name} would be used twice")
        tensor = self._readers[name]()
        if shape is not None and tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{self.folder}: tensor {name} has shape {list(tensor.shape)}, but config.json asks for {list(shape)}"
            )
        self._unused.discard(name)
        return tensor

    def check_all_used(self) -> None:
        if self._unused:
            names = sorted(self._unused)
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"{self.folder}: tensor {names[0]}{more} has no place in the model of config.json")


class _Target:
    """Where loaded tensors go."""

    def __init__(self, device: str | torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = torch.device(device), dtype
        if not dtype.is_floating_point:
            raise InputError(f"dtype {dtype} cannot hold activations: use float32, bfloat16 or float16")
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise InputError("device 'cuda' was asked for, but PyTorch sees no CUDA device: use device='cpu'")

    def place(self, tensor: Tensor) -> Tensor:
        return tensor.to(device=self.device, dtype=self.dtype)


# ---- names ---------------------------------------------------------------------------------------------------------


def _slots(config: ModelConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(module of Model, modules of the checkpoint whose rows it stacks), for every module that holds weights."""
    return _qwen1_slots(config) if config.architecture == "QWenLMHeadModel" else _qwen2_slots(config)


def _qwen1_slots(config: ModelConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield "embed", ("transformer.wte",)
    for i in range(config.layers):
        ours, theirs = f"layers.{i}", f"transformer.h.{i}"
        yield f"{ours}.attention_norm", (f"{theirs}.ln_1",)
        yield f"{ours}.attention.qkv", (f"{theirs}.attn.c_attn",)
        yield f"{ours}.attention.out", (f"{theirs}.attn.c_proj",)
        yield f"{ours}.mlp_norm", (f"{theirs}.ln_2",)
        yield f"{ours}.mlp.gate_up", (f"{theirs}.mlp.w2", f"{theirs}.mlp.w1")  # w2 is the gate
        yield f"{ours}.mlp.down", (f"{theirs}.mlp.c_proj",)
    yield "norm", ("transformer.ln_f",)
    if not config.tied:
        yield "head", ("lm_head",)


def _qwen2_slots(config: ModelConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield "embed", ("model.embed_tokens",)
    for i in range(config.layers):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        yield f"{ours}.attention_norm", (f"{theirs}.input_layernorm",)
        yield f"{ours}.attention.qkv", tuple(f"{theirs}.self_attn.{x}_proj" for x in "qkv")
        if config.qk_norm:
            yield f"{ours}.attention.q_norm", (f"{theirs}.self_attn.q_norm",)
            yield f"{ours}.attention.k_norm", (f"{theirs}.self_attn.k_norm",)
        yield f"{ours}.attention.out", (f"{theirs}.self_attn.o_proj",)
        yield f"{ours}.mlp_norm", (f"{theirs}.post_attention_layernorm",)
        yield f"{ours}.mlp.gate_up", (f"{theirs}.mlp.gate_proj", f"{theirs}.mlp.up_proj")
        yield f"{ours}.mlp.down", (f"{theirs}.mlp.down_proj",)
    yield "norm", ("model.norm",)
    if not config.tied:
        yield "head", ("lm_head",)


def _source_rows(name: str, sources: int, rows: int, config: ModelConfig) -> tuple[int, ...]:
    """How many rows of a stacked matrix each source gives."""
    if sources == 1:
        return (rows,)
    if name.endswith("qkv"):
        q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        return (q, kv, kv)
    return (config.ffn,) * sources


# ---- modules -------------------------------------------------------------------------------------------------------


def _load_module(
    module: nn.Module,
    name: str,
    sources: tuple[str, ...],
    checkpoint: Checkpoint,
    config: ModelConfig,
    target: _Target,
) -> nn.Module:
    if all(f"{source}.qweight" in checkpoint for source in sources):
        return _load_quantized(module, name, sources, checkpoint, config, target)
    weight = module.weight
    assert isinstance(weight, Tensor)
    rows = _source_rows(name, len(sources), weight.shape[0], config)
    tail = tuple(weight.shape[1:])
    parts = [checkpoint.take(f"{s}.weight", (n, *tail)) for s, n in zip(sources, rows, strict=True)]
    module.weight = _frozen(target.place(_stack(parts)))
    bias = _load_bias(module, sources, rows, checkpoint)
    if bias is not None:
        module.bias = _frozen(target.place(bias))
    return module


def _load_quantized(
    module: nn.Module,
    name: str,
    sources: tuple[str, ...],
    checkpoint: Checkpoint,
    config: ModelConfig,
    target: _Target,
) -> nn.Module:
    weight = module.weight
    assert isinstance(weight, Tensor)
    rows, columns = weight.shape
    each = _source_rows(name, len(sources), rows, config)
    packed = concatenate([_take_quantized(s, checkpoint, config, target) for s in sources])
    if (packed.out_features, packed.in_features) != (rows, columns):
        raise CheckpointError(
            f"{checkpoint.folder}: the quantised matrix {sources[0]} is {packed.out_features} x {packed.in_features}, "
            f"but config.json asks for {rows} x {columns}"
        )
    bias = _load_bias(module, sources, each, checkpoint)
    if isinstance(module, nn.Embedding):
        return QuantizedEmbedding(packed, target.dtype)
    return QuantizedLinear(packed, None if bias is None else target.place(bias), target.dtype)


def _take_quantized(source: str, checkpoint: Checkpoint, config: ModelConfig, target: _Target) -> QuantizedWeight:
    if config.quantization is None:
        raise CheckpointError(
            f"{checkpoint.folder} holds quantised tensors ({source}.qweight) but neither config.json has a "
            f"quantization_config nor is there a quantize_config.json: download the missing file"
        )
    scheme = config.quantization.scheme(source)
    if scheme is None:
        raise CheckpointError(f"{checkpoint.folder}: {source} is quantised, but its quantization_config says it is not")
    names = [f"{source}.{suffix}" for suffix in SUFFIXES]
    return QuantizedWeight.from_tensors(source, {n: checkpoint.take(n).to(target.device) for n in names}, scheme)


def _load_bias(
    module: nn.Module, sources: tuple[str, ...], rows: tuple[int, ...], checkpoint: Checkpoint
) -> Tensor | None:
    """The stacked bias where the model has one. GPTQ files carry a bias for every matrix; a zero one may go."""
    names = [f"{source}.bias" for source in sources]
    if getattr(module, "bias", None) is not None:
        return _stack([checkpoint.take(n, (r,)) for n, r in zip(names, rows, strict=True)])
    for name in names:
        if name in checkpoint and bool(checkpoint.take(name).any()):
            raise CheckpointError(f"{checkpoint.folder}: tensor {name} is not zero, but the model has no such bias")
    return None


def _tied_head(embed: nn.Module, checkpoint: Checkpoint, config: ModelConfig) -> nn.Module:
    if isinstance(embed, QuantizedEmbedding):
        return embed.as_head()
    weight = embed.weight
    assert isinstance(weight, nn.Parameter)
    if "lm_head.weight" in checkpoint:
        written = checkpoint.take("lm_head.weight", (config.vocab, config.hidden))
        if not torch.equal(written.to(weight), weight):
            raise CheckpointError(
                f"{checkpoint.folder}: config.json ties the head to the embedding, but lm_head.weight differs from it"
            )
    with torch.device("meta"):
        head = nn.Linear(config.hidden, config.vocab, bias=False)
    head.weight = weight
    return head


def _stack(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=0)


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _replace(model: Model, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


# ---- files ---------------------------------------------------------------------------------------------------------


def _open_folder(folder: Path) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """(name, read) of every tensor in the folder's weight files."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    for file in _weight_files(folder):
        _check_file(file)
        yield from _open_safetensors(file) if file.suffix == ".safetensors" else _open_bin(file)


def _weight_files(folder: Path) -> list[Path]:
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).is_file():
            return _files_of_index(folder / index)
    single = [folder / "model.safetensors", folder / "pytorch_model.bin"]
    found = [f for f in single if f.is_file()] or sorted(folder.glob("*.safetensors"))
    if not found:
        partial = sorted(f.name for f in folder.glob("*.incomplete")) + sorted(f.name for f in folder.glob("*.part"))
        hint = f" ({partial[0]} is a download that was cut off)" if partial else ""
        raise CheckpointError(f"{folder} has no weights (model.safetensors or pytorch_model.bin){hint}: download them")
    return found[:1] if found[0] in single else found


def _files_of_index(index: Path) -> list[Path]:
    try:
        table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(table.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is damaged ({error!r}): download it again") from None
    missing = [n for n in names if not (index.parent / n).is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent} lacks {len(missing)} of {len(names)} weight files, first {missing[0]}: "
            f"the download did not finish, run it again"
        )
    return [index.parent / n for n in names]


def _check_file(file: Path) -> None:
    with file.open("rb") as stream:
        head = stream.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{file} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder")
    if not head:
        raise CheckpointError(f"{file} is empty: download it again")


def _open_safetensors(file: Path) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    try:
        opened = safe_open(file, framework="pt")
        names: Iterable[str] = opened.keys()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is incomplete or damaged ({error}): download it again") from None
    for name in names:
        yield name, partial(opened.get_tensor, name)


def _open_bin(file: Path) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    try:
        loaded: Mapping[str, Tensor] = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except Exception as error:  # torch.load raises anything from EOFError to UnpicklingError on a damaged file
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{file} is damaged or holds more than tensors ({reason}): download it again") from None
    for name, tensor in loaded.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{file}: {name} is a {type(tensor).__name__}, not a tensor")
        yield name, partial(_itself, tensor)


def _itself(tensor: Tensor) -> Tensor:
    return tensor
