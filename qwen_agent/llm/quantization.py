"""The GPTQ checkpoint layout of Qwen-7B-Chat-Int4: read it, write it, and quantise a matrix into it.

A linear layer ``W`` [N, K] (N = out features, K = in features) in groups of G input columns is stored as

=========  =====  ============  ==================================================================
qweight    int32  [K/p, N]      p = 32/bits values per word along the inputs, lowest bits first
qzeros     int32  [groups, N/p] p values per word along the outputs; **zero - 1** is stored
scales     fp16   [groups, N]
g_idx      int32  [K]           the group of each input: k // G, or any map when desc_act was on
=========  =====  ============  ==================================================================

and means ``W[n, k] = scales[g, n] * (q[n, k] - zero[g, n])`` with ``g = g_idx[k]``. Zeros therefore run from 1 to
2**bits; a symmetric grid has the zero 2**(bits-1). G = -1 is one group over all inputs.

Promises: what ``pack`` writes, ``unpack`` returns; every tensor is checked against the shapes above before it is used.
Not promised: GPTQ's ``gptq_v2`` layout (true zeros), 2 and 3 bits, big-endian machines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwen_agent.errors import CheckpointError, UnsupportedModel

SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")
_SMALLEST_SCALE = 2.0**-17  # below it fp16 has fewer than the 8 significant bits of bf16
_SHRINKS = tuple(1.0 - 0.025 * step for step in range(17))  # 1.0 down to 0.6 of a group's range


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one matrix is quantised: 4 or 8 bits, inputs per group (-1 = all), symmetric grid or not."""

    bits: int
    group_size: int
    sym: bool = True

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise UnsupportedModel(f"{self.bits}-bit weights are not implemented: only 4 and 8 bits are")
        if self.group_size != -1 and self.group_size < 1:
            raise CheckpointError(f"group_size is {self.group_size}: it must be positive, or -1 for one group")


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """A checkpoint's quantisation: a default scheme and per-module overrides.

    ``overrides`` are (pattern, scheme) in file order; the first pattern that matches the start of a module's name
    decides, as in GPTQModel, and a scheme of None means "not quantised".
    """

    default: Scheme
    desc_act: bool = False
    overrides: tuple[tuple[str, Scheme | None], ...] = ()

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> QuantizationConfig:
        """Read ``quantization_config`` of config.json, or quantize_config.json (which may lack ``quant_method``)."""
        method, layout = config.get("quant_method", "gptq"), config.get("checkpoint_format") or "gptq"
        if method != "gptq" or layout != "gptq":
            raise UnsupportedModel(f"quant_method {method!r} in the layout {layout!r} is not implemented: only gptq is")
        if "bits" not in config:
            raise CheckpointError("the quantisation config has no 'bits'")
        default = Scheme(config["bits"], config.get("group_size", -1), config.get("sym", True))
        dynamic = (config.get("dynamic") or {}).items()
        overrides = tuple(_override(pattern, values or {}, default) for pattern, values in dynamic)
        return cls(default, bool(config.get("desc_act", False)), overrides)

    def to_dict(self) -> dict[str, Any]:
        """The ``quantization_config`` entry that ``from_dict`` reads back."""
        base = {"quant_method": "gptq", "checkpoint_format": "gptq", "desc_act": self.desc_act}
        dynamic = {
            ("-:" if scheme is None else "+:") + pattern: {} if scheme is None else _fields(scheme)
            for pattern, scheme in self.overrides
        }
        return base | _fields(self.default) | {"dynamic": dynamic}

    def scheme(self, module: str) -> Scheme | None:
        """How ``module`` (``model.layers.0.mlp.up_proj``) is quantised if its tensors are; None = never."""
        for pattern, scheme in self.overrides:
            if re.match(pattern, module):
                return scheme
        return self.default


def _override(pattern: str, values: Mapping[str, Any], default: Scheme) -> tuple[str, Scheme | None]:
    if pattern.startswith("-:"):
        return pattern[2:], None
    known = {key: values[key] for key in ("bits", "group_size", "sym") if key in values}
    return pattern.removeprefix("+:"), Scheme(**(_fields(default) | known))


def _fields(scheme: Scheme) -> dict[str, Any]:
    return {"bits": scheme.bits, "group_size": scheme.group_size, "sym": scheme.sym}


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedWeight:
    """One packed matrix, as stored (see the module's table). Not compared by value: it holds tensors."""

    qweight: Tensor  # int32 [K/p, N]
    qzeros: Tensor  # int32 [groups, N/p], zero - 1
    scales: Tensor  # fp16 [groups, N]
    g_idx: Tensor  # int32 [K]
    bits: int
    group_size: int

    @property
    def in_features(self) -> int:
        return self.g_idx.shape[0]

    @property
    def out_features(self) -> int:
        return self.scales.shape[1]

    @classmethod
    def from_tensors(cls, name: str, tensors: Mapping[str, Tensor], scheme: Scheme) -> QuantizedWeight:
        """Take ``{name}.qweight`` and its companions out of a checkpoint, checked.

        Raises CheckpointError naming the tensor, what was found and what was expected.
        """
        missing = [f"{name}.{suffix}" for suffix in SUFFIXES if f"{name}.{suffix}" not in tensors]
        if missing:
            raise CheckpointError(f"the checkpoint has no {', '.join(missing)}")
        qweight, qzeros, scales, g_idx = (tensors[f"{name}.{suffix}"] for suffix in SUFFIXES)
        weight = cls(qweight, qzeros, scales, g_idx, scheme.bits, scheme.group_size)
        _check(name, weight)
        return weight

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The four tensors under their names in a checkpoint."""
        return {f"{name}.{suffix}": getattr(self, suffix) for suffix in SUFFIXES}


def pack(
    q: Tensor, scales: Tensor, zeros: Tensor, *, bits: int, group_size: int, g_idx: Tensor | None = None
) -> QuantizedWeight:
    """Store integers ``q`` [N, K] in 0..2**bits-1 with ``scales`` and ``zeros`` (1..2**bits), both [N, groups].

    ``g_idx`` [K] defaults to k // group_size. Raises CheckpointError if N or K is no multiple of 32/bits, or a value is
    out of range.
    """
    per_word, (n, k) = 32 // bits, q.shape
    if n % per_word or k % per_word:
        raise CheckpointError(f"cannot pack [{n}, {k}] in {bits} bits: both must be multiples of {per_word}")
    if int(q.min()) < 0 or int(q.max()) >= 1 << bits or int(zeros.min()) < 1 or int(zeros.max()) > 1 << bits:
        raise CheckpointError(f"values for {bits} bits must be 0..{(1 << bits) - 1} and zeros 1..{1 << bits}")
    if g_idx is None:
        g_idx = torch.arange(k, dtype=torch.int32) // (k if group_size == -1 else group_size)
    weight = QuantizedWeight(
        qweight=_to_words(q.to(torch.uint8), bits).t().contiguous(),
        qzeros=_to_words((zeros.t() - 1).to(torch.uint8), bits),
        scales=scales.t().to(torch.float16).contiguous(),
        g_idx=g_idx.to(torch.int32),
        bits=bits,
        group_size=group_size,
    )
    _check("packed", weight)
    return weight


def unpack(weight: QuantizedWeight) -> tuple[Tensor, Tensor, Tensor]:
    """``q`` uint8 [N, K], ``scales`` as stored [N, groups] and true ``zeros`` int16 [N, groups]."""
    q = _from_words(weight.qweight.t(), weight.bits)
    zeros = _from_words(weight.qzeros, weight.bits).to(torch.int16) + 1
    return q, weight.scales.t(), zeros.t()


def dequantize(weight: QuantizedWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix [N, K] in ``dtype``, computed in fp32 and rounded once."""
    q, scales, zeros = unpack(weight)
    return _rebuild(q, scales, zeros, weight.g_idx).to(dtype)


def dequantize_rows(weight: QuantizedWeight, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows ``ids`` (int64, any shape) of the matrix, [*ids.shape, K]: an embedding look-up, unpacking only them."""
    flat, per_word = ids.reshape(-1), 32 // weight.bits
    q = _from_words(weight.qweight[:, flat].t(), weight.bits)  # [n, K]
    shift = (flat % per_word * weight.bits).to(torch.int32)
    stored = (weight.qzeros[:, flat // per_word] >> shift) & ((1 << weight.bits) - 1)  # [groups, n]
    rows = _rebuild(q, weight.scales[:, flat].t(), stored.t() + 1, weight.g_idx)
    return rows.to(dtype).reshape(*ids.shape, weight.in_features)


def concatenate(weights: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """One matrix with the rows of all, in order (q, k, v or gate, up). CheckpointError if they cannot share groups."""
    first = weights[0]
    for other in weights[1:]:
        for what in ("bits", "group_size", "in_features"):
            ours, theirs = getattr(first, what), getattr(other, what)
            if ours != theirs:
                raise CheckpointError(
                    f"cannot fuse quantised matrices: {what} is {ours} in one and {theirs} in another"
                )
        if not torch.equal(first.g_idx, other.g_idx):
            raise CheckpointError("cannot fuse quantised matrices: their g_idx differ (desc_act), so their groups do")
    qweight, qzeros, scales = (
        torch.cat([getattr(weight, suffix) for weight in weights], dim=1) for suffix in SUFFIXES[:3]
    )
    return QuantizedWeight(qweight, qzeros, scales, first.g_idx, first.bits, first.group_size)


def split(weight: QuantizedWeight, rows: Sequence[int]) -> list[QuantizedWeight]:
    """The inverse of ``concatenate``: matrices of so many ``rows`` each; every count a multiple of 32/bits."""
    per_word = 32 // weight.bits
    if sum(rows) != weight.out_features or any(count % per_word for count in rows):
        raise CheckpointError(f"cannot split {weight.out_features} rows into {list(rows)}: multiples of {per_word}")
    qweights, scales = weight.qweight.split(list(rows), dim=1), weight.scales.split(list(rows), dim=1)
    qzeros = weight.qzeros.split([count // per_word for count in rows], dim=1)
    return [
        QuantizedWeight(q.contiguous(), z.contiguous(), s.contiguous(), weight.g_idx, weight.bits, weight.group_size)
        for q, z, s in zip(qweights, qzeros, scales, strict=True)
    ]


def quantize_round(weight: Tensor, scheme: Scheme) -> QuantizedWeight:
    """Round [N, K] to the nearest point of a grid that spans each group's range."""
    weight = weight.float()
    scales, zeros = choose_grid(weight, scheme)
    group = _group_size(weight, scheme)
    s, z = (x.repeat_interleave(group, dim=1) for x in (scales, zeros))
    q = (torch.round(weight / s) + z).clamp_(0, (1 << scheme.bits) - 1)
    return pack(q, scales, zeros, bits=scheme.bits, group_size=scheme.group_size)


def quantize_gptq(
    weight: Tensor, hessian: Tensor, scheme: Scheme, *, damping: float = 0.01, clip: bool = True, block: int = 128
) -> QuantizedWeight:
    """GPTQ (Frantar et al. 2022): round column by column, pushing each column's error onto those not yet rounded.

    ``weight`` [N, K]; ``hessian`` [K, K] = sum of x x^T over calibration inputs, any positive factor. Grids are chosen
    first (``clip`` searches a narrower range that loses less, weighted by the inputs' power), so columns can be visited
    from the most to the least powerful input while ``g_idx`` stays k // G.
    Raises CheckpointError if the Hessian is not positive definite even after damping.
    """
    weight, power = weight.float(), hessian.diagonal().float()
    group = _group_size(weight, scheme)
    scales, zeros = choose_grid(weight, scheme, power if clip else None)
    order = torch.argsort(power, descending=True)
    upper = _inverse_root(hessian.float()[order][:, order], damping)
    s, z = (x[:, order // group] for x in (scales, zeros))
    q = _feed_errors(weight[:, order], upper, s, z, (1 << scheme.bits) - 1, block)
    return pack(q[:, torch.argsort(order)], scales, zeros, bits=scheme.bits, group_size=scheme.group_size)


def choose_grid(weight: Tensor, scheme: Scheme, power: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scales and zeros, fp32 [N, groups], for ``weight`` [N, K].

    Scales have bf16's 8 significant bits and are exact in fp16 too, so kernels of either kind multiply by the same
    numbers. With ``power`` [K], ranges are narrowed as long as the error, weighted by it, shrinks.
    """
    group = _group_size(weight, scheme)
    groups = weight.reshape(weight.shape[0], -1, group)  # [N, groups, G]
    low, high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
    scales, zeros = _grid(low, high, scheme)
    if power is None:
        return scales, zeros
    share = power.reshape(-1, group)
    best = _grid_error(groups, scales, zeros, share, scheme.bits)
    for shrink in _SHRINKS[1:]:
        s, z = _grid(low * shrink, high * shrink, scheme)
        error = _grid_error(groups, s, z, share, scheme.bits)
        better = error < best
        best, scales, zeros = (torch.where(better, a, b) for a, b in ((error, best), (s, scales), (z, zeros)))
    return scales, zeros


def _grid(low: Tensor, high: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    top = (1 << scheme.bits) - 1
    if scheme.sym:
        # max/7 for 4 bits, not max/7.5: the largest weight keeps its value whichever sign it has
        scales, zeros = torch.maximum(-low, high) / (top // 2), torch.full_like(low, (top + 1) // 2)
        return _representable(scales), zeros
    scales = _representable((high - low) / top)
    return scales, torch.round(-low / scales).clamp_(1, top)  # a zero of 0 has no stored form


def _representable(scales: Tensor) -> Tensor:
    """Rounded up to bf16's 8 significant bits: up, so that the ends of the range are not cut off."""
    bits = scales.clamp_min(_SMALLEST_SCALE).view(torch.int32)
    return ((bits + 0xFFFF) & -0x10000).view(torch.float32)


def _grid_error(groups: Tensor, scales: Tensor, zeros: Tensor, power: Tensor, bits: int) -> Tensor:
    s, z = scales.unsqueeze(-1), zeros.unsqueeze(-1)
    error = (torch.round(groups / s) + z).clamp_(0, (1 << bits) - 1).sub_(z).mul_(s).sub_(groups)
    return error.square_().mul_(power).sum(-1)  # [N, groups]


def _inverse_root(hessian: Tensor, damping: float) -> Tensor:
    """Upper triangular U [K, K] with U^T U = (H + damping * mean(diag H) * I)^-1."""
    diagonal = hessian.diagonal()
    diagonal.add_(damping * diagonal.mean() + 1e-8)  # the last keeps inputs that were always zero invertible
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if int(failed):
        raise CheckpointError("the Hessian is not positive definite: calibrate on more text or raise the damping")
    root: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    return root


def _feed_errors(weight: Tensor, upper: Tensor, scales: Tensor, zeros: Tensor, top: int, block: int) -> Tensor:
    """GPTQ's loop over columns, in blocks so that most of the work is one product per block. Returns q [N, K]."""
    weight, q = weight.clone(), torch.empty_like(weight)
    for start in range(0, weight.shape[1], block):
        stop = min(start + block, weight.shape[1])
        errors = torch.empty_like(weight[:, start:stop])
        for k in range(start, stop):
            column, s, z = weight[:, k], scales[:, k], zeros[:, k]
            q[:, k] = (torch.round(column / s) + z).clamp_(0, top)
            error = (column - (q[:, k] - z) * s) / upper[k, k]
            weight[:, k:stop].addr_(error, upper[k, k:stop], alpha=-1)
            errors[:, k - start] = error
        weight[:, stop:].addmm_(errors, upper[start:stop, stop:], alpha=-1)
    return q


def _group_size(weight: Tensor, scheme: Scheme) -> int:
    k = weight.shape[1]
    group = k if scheme.group_size == -1 else scheme.group_size
    if k % group:
        raise CheckpointError(f"{k} inputs cannot be cut into groups of {group}")
    return group


def _rebuild(q: Tensor, scales: Tensor, zeros: Tensor, g_idx: Tensor) -> Tensor:
    index = g_idx.long()
    return (q.float() - zeros.float()[:, index]) * scales.float()[:, index]  # [N, K]


def _to_words(values: Tensor, bits: int) -> Tensor:
    """uint8 [M, L] -> int32 [M, L*bits/32], lowest bits first."""
    if bits == 4:
        values = values[:, 0::2] | values[:, 1::2] << 4
    return values.reshape(-1).view(torch.int32).reshape(values.shape[0], -1)


def _from_words(words: Tensor, bits: int) -> Tensor:
    """int32 [M, W] -> uint8 [M, W*32/bits], the inverse of ``_to_words``."""
    octets = words.reshape(-1).view(torch.uint8)
    if bits == 4:
        octets = torch.stack((octets & 15, octets >> 4), dim=-1)
    return octets.reshape(words.shape[0], -1)


def _check(name: str, weight: QuantizedWeight) -> None:
    k, n, per_word = weight.in_features, weight.out_features, 32 // weight.bits
    groups = 1 if weight.group_size == -1 else -(-k // weight.group_size)
    expected = {
        "qweight": (k // per_word, n),
        "qzeros": (groups, n // per_word),
        "scales": (groups, n),
        "g_idx": (k,),
    }
    for suffix, shape in expected.items():
        tensor: Tensor = getattr(weight, suffix)
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{name}.{suffix} has the shape {list(tensor.shape)} but {weight.bits} bits in groups of "
                f"{weight.group_size} need {list(shape)}"
            )
        if suffix != "scales" and tensor.dtype != torch.int32:
            raise CheckpointError(f"{name}.{suffix} is {tensor.dtype}: it must be torch.int32")
    if int(weight.g_idx.min()) < 0 or int(weight.g_idx.max()) >= groups:
        raise CheckpointError(f"{name}.g_idx names a group outside 0..{groups - 1}")
