"""The next token chosen on the device, so that decoding can go on without asking the host.

``argmax`` is greedy. ``sample`` has the semantics and the order of qwen_agent.llm.sampling: repetition penalty, mask,
temperature, top-k (ties at the threshold stay), top-p (the smallest set of most likely tokens whose probability
reaches p; the likeliest always stays), draw. Everything that may change from token to token is read from device
memory, so a CUDA graph of these kernels can be replayed.

Nothing is sorted. Probabilities relative to the likeliest token become integers (2**44 is 1), whose sums do not depend
on the order of adding. A histogram of them over the distance to the top logit tells in which bin the nucleus ends;
the tokens before that bin are kept, those after it are not, and those in it (a few hundred of Qwen's 151936) are
compared pairwise, which is exact. Only with many thousands of equal logits right at the threshold, and others that
differ, does that become slow.

Promises: the same input gives the same token on every run of one device; an id is chosen that is below the vocabulary
and, if any logit is finite, one that may be chosen; NaN logits count as impossible, in ``sample`` also those below
-1e30. With nothing possible, id 0.

Not promised: tokens less likely than e**-30 times the likeliest are never drawn, though kept by plain top-p 1.0. Of
equal logits at the end of the nucleus the lower ids stay, where a plain sort may keep others. Temperature 0 is for
``argmax``; in ``sample`` it is undefined which token is chosen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwen_agent.llm.kernels.launch import depend, release, with_pdl

_BLOCK = 1024  # logits per program
_BINS = 2048  # of the histogram; the last stands for "too unlikely to matter" and stays empty
_RANKED = 16  # undecided tokens a program ranks at a time
_PROGRAMS = 264  # programs that rank: two for each multiprocessor
_LARGEST = 2**18  # tokens: their integer masses must add up in 63 bits

_ONE = tl.constexpr(float(2**44))  # the integer mass of the likeliest token
_FAR = tl.constexpr(30.0)  # logits this far below the top have no mass: exp(-30) * 2**44 is 1.6
_HUGE = tl.constexpr(1e30)  # logits are kept within this, so that their differences are finite

# Places of ``Scratch.counts``
_UNDECIDED = tl.constexpr(0)  # how many tokens are undecided
_TOTAL = tl.constexpr(1)  # mass of all tokens
_ABOVE = tl.constexpr(2)  # mass of the tokens before the undecided ones
_RANK = tl.constexpr(3)  # how many those are
_KNOWN = tl.constexpr(4)  # mass of what top-k leaves, or -1 if that is undecided
_LOW = tl.constexpr(5)  # first undecided bin
_EDGE_ID = tl.constexpr(6)  # id of the last kept token in order of probability
_K = tl.constexpr(7)  # top_k where it takes away anything that matters, else 0

# Places of ``Scratch.levels``
_PEAK = tl.constexpr(0)  # the top logit
_CUT = tl.constexpr(1)  # distance from it at which tokens are out of every nucleus
_SCALE = tl.constexpr(2)  # bins per unit of distance; 0 if all logits are equal
_EDGE = tl.constexpr(3)  # logit of the last kept token


@dataclass(frozen=True, slots=True)
class Rules:
    """How a request chooses, on the device. None means that no token is masked, or penalized.

    parameters float32 [4]: temperature, top_k (0 is off), top_p (1 is off), repetition penalty (1 is off).
    allowed int32 [at least ceil(vocabulary / 32)]: id i may be chosen if bit i % 32 of word i // 32 is set.
    seen uint8 [at least V, as logits]: 1 where the penalty applies; ``argmax`` and ``sample`` add what they choose.
    """

    parameters: Tensor
    allowed: Tensor | None = None
    seen: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Scratch:
    """Buffers of the kernels for ids below ``vocabulary``; contents mean nothing between calls."""

    vocabulary: int
    maxima: Tensor  # float32 [blocks]
    minima: Tensor  # float32 [blocks]
    places: Tensor  # int32 [blocks]
    block_masses: Tensor  # int64 [blocks]
    bin_masses: Tensor  # int64 [bins]
    bin_counts: Tensor  # int32 [bins]
    counts: Tensor  # int64 [8]
    levels: Tensor  # float32 [4]
    logits: Tensor  # float32 [blocks * ids of a block], after penalty, mask and temperature; -inf at the end
    undecided: Tensor  # float32 [vocabulary]
    undecided_ids: Tensor  # int32 [vocabulary]
    before: Tensor  # int64 [vocabulary]
    greater: Tensor  # int32 [vocabulary]

    @property
    def blocks(self) -> int:
        return triton.cdiv(self.vocabulary, _BLOCK)


def new_scratch(vocabulary: int, device: torch.device) -> Scratch:
    """Buffers (about 24 bytes per id) for choosing among ids below ``vocabulary``, which is at most 2**18."""
    if not 0 < vocabulary <= _LARGEST:
        raise ValueError(f"a vocabulary of {vocabulary} tokens cannot be sampled from; at most {_LARGEST} can")

    def buffer(size: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(size, dtype=dtype, device=device)

    blocks = triton.cdiv(vocabulary, _BLOCK)
    return Scratch(
        vocabulary=vocabulary,
        maxima=buffer(blocks, torch.float32),
        minima=buffer(blocks, torch.float32),
        places=buffer(blocks, torch.int32),
        block_masses=buffer(blocks, torch.int64),
        bin_masses=buffer(_BINS, torch.int64),
        bin_counts=buffer(_BINS, torch.int32),
        counts=buffer(8, torch.int64),
        levels=buffer(4, torch.float32),
        logits=buffer(blocks * _BLOCK, torch.float32),
        undecided=buffer(vocabulary, torch.float32),
        undecided_ids=buffer(vocabulary, torch.int32),
        before=buffer(vocabulary, torch.int64),
        greater=buffer(vocabulary, torch.int32),
    )


@triton.jit
def _adjusted(logits, ids, size, vocabulary, parameters, allowed, seen):
    """Logits of ids after penalty and mask; -inf where impossible."""
    # Masked by the size of the buffer, a multiple of 16, where the vocabulary may be odd: so loads stay wide.
    values = tl.load(logits + ids, mask=ids < size, other=-float("inf")).to(tl.float32)
    possible = (ids < vocabulary) & (values == values)
    if seen is not None:
        penalty = tl.load(parameters + 3)
        penalized = tl.where(values > 0, tl.math.div_rn(values, penalty), values * penalty)
        values = tl.where(tl.load(seen + ids, mask=ids < size, other=0) != 0, penalized, values)
    if allowed is not None:
        words = tl.load(allowed + ids // 32, mask=ids < vocabulary, other=0)
        possible = possible & (((words >> (ids % 32)) & 1) != 0)
    return tl.where(possible, values, -float("inf"))


@triton.jit
def _mass(distance):
    """Probability relative to the likeliest token, as an integer, from how far the logit is below the top."""
    mass = (tl.exp(-tl.minimum(distance, _FAR)) * _ONE).to(tl.int64)
    return tl.where(distance < _FAR, mass, 0)


@triton.jit
def _bin(distance, ids, cut, scale, vocabulary, BINS: tl.constexpr):
    """Bins follow the order of probability, in which lower ids come first among equal logits."""
    near = tl.minimum((tl.minimum(distance, cut) * scale).to(tl.int32), BINS - 2)
    near = tl.where(scale > 0, near, ids * (BINS - 1) // vocabulary)
    return tl.where(distance < cut, near, BINS - 1)


@triton.jit
def _needed(total, parameters):
    """The mass that the nucleus must reach."""
    exact = tl.ceil(total.to(tl.float64) * tl.load(parameters + 2).to(tl.float64))
    return tl.maximum(exact.to(tl.int64), 1)


@triton.jit
def _put(token, seen, chosen):
    tl.store(token, chosen.to(tl.int64))
    if seen is not None:
        tl.store(seen + chosen, tl.full((), 1, tl.uint8))


@triton.jit
def _block_argmax(
    logits, maxima, places, parameters, allowed, seen, size, vocabulary, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    release(PDL)
    depend(PDL)
    program = tl.program_id(0)
    ids = program * BLOCK + tl.arange(0, BLOCK)
    values = _adjusted(logits, ids, size, vocabulary, parameters, allowed, seen)
    top = tl.max(values)
    tl.store(maxima + program, top)
    tl.store(places + program, tl.min(tl.where(values == top, ids, vocabulary - 1)))


@triton.jit
def _last_argmax(maxima, places, token, seen, blocks, COUNT: tl.constexpr, PDL: tl.constexpr):
    release(PDL)
    depend(PDL)
    slots = tl.arange(0, COUNT)
    tops = tl.load(maxima + slots, mask=slots < blocks, other=-float("inf"))
    # An unused slot names an id that is too large to be the least.
    ids = tl.load(places + slots, mask=slots < blocks, other=2147483647)
    _put(token, seen, tl.min(tl.where(tops == tl.max(tops), ids, 2147483647)))


@triton.jit
def _prepare(
    logits,
    scaled,
    maxima,
    minima,
    bin_masses,
    bin_counts,
    counts,
    parameters,
    allowed,
    seen,
    size,
    vocabulary,
    BLOCK: tl.constexpr,
    BINS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Step 1: logits after penalty, mask and temperature, with the extremes of each block; sums start at zero."""
    release(PDL)
    depend(PDL)
    program = tl.program_id(0)
    if program == 0:
        bins = tl.arange(0, BINS)
        tl.store(bin_masses + bins, tl.zeros((BINS,), tl.int64))
        tl.store(bin_counts + bins, tl.zeros((BINS,), tl.int32))
        tl.store(counts + _UNDECIDED, tl.zeros((), tl.int64))
        tl.store(counts + _TOTAL, tl.zeros((), tl.int64))
    ids = program * BLOCK + tl.arange(0, BLOCK)
    values = _adjusted(logits, ids, size, vocabulary, parameters, allowed, seen)
    values = tl.math.div_rn(values, tl.load(parameters))
    values = tl.where(values >= -_HUGE, tl.minimum(values, _HUGE), -float("inf"))
    tl.store(scaled + ids, values)
    tl.store(maxima + program, tl.max(values))
    tl.store(minima + program, tl.min(tl.where(values == -float("inf"), _HUGE, values)))


@triton.jit
def _histogram(
    scaled,
    maxima,
    minima,
    bin_masses,
    bin_counts,
    counts,
    levels,
    parameters,
    vocabulary,
    blocks,
    BLOCK: tl.constexpr,
    BINS: tl.constexpr,
    COUNT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Step 2: mass (and with top-k number) of tokens by distance to the top logit."""
    release(PDL)
    depend(PDL)
    program = tl.program_id(0)
    slots = tl.arange(0, COUNT)
    peak = tl.max(tl.load(maxima + slots, mask=slots < blocks, other=-float("inf")))
    peak = tl.where(peak == -float("inf"), 0.0, peak)
    least = tl.min(tl.load(minima + slots, mask=slots < blocks, other=_HUGE))
    limited = tl.load(parameters + 1) > 0
    # Tokens with p < (1 - top_p) / V add up to less than 1 - top_p, so none of them is in the nucleus; and the
    # likeliest has at most p = 1. Top-k counts them, though.
    tail = tl.maximum(1.0 - tl.load(parameters + 2), 1e-20)
    cut = tl.where(limited, _FAR, tl.minimum(tl.log(vocabulary / tail) + 0.01, _FAR))
    scale = tl.where(peak > least, (BINS - 1) / tl.maximum(tl.minimum(peak - least, cut), 1e-6), 0.0)
    if program == 0:
        tl.store(levels + _PEAK, peak)
        tl.store(levels + _CUT, cut)
        tl.store(levels + _SCALE, scale)
    ids = program * BLOCK + tl.arange(0, BLOCK)
    distance = peak - tl.load(scaled + ids)
    mass = _mass(distance)
    place = _bin(distance, ids, cut, scale, vocabulary, BINS)
    # Integers add up to the same in any order.
    tl.atomic_add(bin_masses + place, mass, mask=distance < cut, sem="relaxed")
    counted = distance < tl.where(limited, cut, -1.0)
    tl.atomic_add(bin_counts + place, tl.full((BLOCK,), 1, tl.int32), mask=counted, sem="relaxed")
    tl.atomic_add(counts + _TOTAL, tl.sum(mass), sem="relaxed")


@triton.jit
def _select(
    scaled,
    bin_masses,
    bin_counts,
    block_masses,
    undecided,
    undecided_ids,
    counts,
    levels,
    parameters,
    vocabulary,
    BLOCK: tl.constexpr,
    BINS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Step 3: which bins are kept whole and which are undecided; the undecided tokens are gathered, in any order."""
    release(PDL)
    depend(PDL)
    program = tl.program_id(0)
    bins = tl.arange(0, BINS)
    masses = tl.load(bin_masses + bins)
    numbers = tl.load(bin_counts + bins)
    k = tl.load(parameters + 1).to(tl.int32)
    scale = tl.load(levels + _SCALE)
    # The bin of the k-th largest; without one, all that top-k takes away is too unlikely to matter. Of equal logits
    # it takes none.
    last = tl.sum((tl.cumsum(numbers) < k).to(tl.int32))
    limited = (k > 0) & (last < BINS - 1) & (scale > 0)
    total = tl.load(counts + _TOTAL)
    # With top-k the total is at least the mass before the bin of the k-th.
    least = tl.where(limited, tl.sum(tl.where(bins < last, masses, 0)), total)
    low = tl.sum((tl.cumsum(masses) < _needed(least, parameters)).to(tl.int32))
    low = tl.minimum(low, tl.where(limited, last, BINS - 1))
    high = tl.where(limited, last, low)
    if program == 0:
        tl.store(counts + _ABOVE, tl.sum(tl.where(bins < low, masses, 0)))
        tl.store(counts + _RANK, tl.sum(tl.where(bins < low, numbers, 0)).to(tl.int64))
        tl.store(counts + _KNOWN, tl.where(limited, -1, total))
        tl.store(counts + _LOW, low.to(tl.int64))
        tl.store(counts + _K, tl.where(limited, k, 0).to(tl.int64))
    ids = program * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(scaled + ids)
    distance = tl.load(levels + _PEAK) - values
    place = _bin(distance, ids, tl.load(levels + _CUT), scale, vocabulary, BINS)
    tl.store(block_masses + program, tl.sum(tl.where(place < low, _mass(distance), 0)))
    open_ = ((place >= low) & (place <= high) & (place < BINS - 1)).to(tl.int32)
    start = tl.atomic_add(counts + _UNDECIDED, tl.sum(open_).to(tl.int64), sem="relaxed")
    slots = start + tl.cumsum(open_) - 1
    tl.store(undecided + slots, values, mask=open_ != 0)
    tl.store(undecided_ids + slots, ids, mask=open_ != 0)


@triton.jit
def _rank(
    undecided, undecided_ids, before, greater, counts, levels, ROWS: tl.constexpr, COLS: tl.constexpr, PDL: tl.constexpr
):
    """Step 4: for each undecided token, the mass of those more likely, and how many have a larger logit."""
    release(PDL)
    depend(PDL)
    count = tl.load(counts + _UNDECIDED).to(tl.int32)
    peak = tl.load(levels + _PEAK)
    first = tl.program_id(0) * ROWS
    while first < count:
        rows = first + tl.arange(0, ROWS)
        mine = tl.load(undecided + rows, mask=rows < count, other=0.0)[:, None]
        my_ids = tl.load(undecided_ids + rows, mask=rows < count, other=0)[:, None]
        ahead = tl.zeros((ROWS,), tl.int64)
        larger = tl.zeros((ROWS,), tl.int32)
        start = tl.full((), 0, tl.int32)
        while start < count:
            columns = start + tl.arange(0, COLS)
            values = tl.load(undecided + columns, mask=columns < count, other=-float("inf"))
            ids = tl.load(undecided_ids + columns, mask=columns < count, other=0)[None, :]
            mass = _mass(peak - values)[None, :]
            values = values[None, :]
            first_of_equals = (values == mine) & (ids < my_ids)
            ahead += tl.sum(tl.where((values > mine) | first_of_equals, mass, 0), axis=1)
            larger += tl.sum((values > mine).to(tl.int32), axis=1)
            start += COLS
        tl.store(before + rows, ahead, mask=rows < count)
        tl.store(greater + rows, larger, mask=rows < count)
        first += tl.num_programs(0) * ROWS


@triton.jit
def _survivors(undecided, greater, slots, count, rank, peak, k):
    """Undecided logits at slots, their masses, and whether top-k leaves them."""
    inside = slots < count
    values = tl.load(undecided + slots, mask=inside, other=-float("inf"))
    # Counting strictly larger ones keeps all that are equal to the k-th.
    leading = rank + tl.load(greater + slots, mask=inside, other=0)
    return values, _mass(peak - values), inside & (leading < tl.where(k > 0, k, 2147483647))


@triton.jit
def _draw(
    scaled,
    block_masses,
    undecided,
    undecided_ids,
    before,
    greater,
    counts,
    levels,
    parameters,
    uniform,
    token,
    seen,
    vocabulary,
    blocks,
    BLOCK: tl.constexpr,
    BINS: tl.constexpr,
    COUNT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Step 5: where the nucleus ends, and the first id at which the kept mass exceeds uniform times all of it."""
    release(PDL)
    depend(PDL)
    count = tl.load(counts + _UNDECIDED).to(tl.int32)
    above = tl.load(counts + _ABOVE)
    rank = tl.load(counts + _RANK).to(tl.int32)
    k = tl.load(counts + _K).to(tl.int32)
    low = tl.load(counts + _LOW).to(tl.int32)
    peak = tl.load(levels + _PEAK)
    lanes = tl.arange(0, BLOCK)

    total = tl.load(counts + _KNOWN)
    if total < 0:
        total = above
        start = tl.full((), 0, tl.int32)
        while start < count:
            _, mass, alive = _survivors(undecided, greater, start + lanes, count, rank, peak, k)
            total += tl.sum(tl.where(alive, mass, 0))
            start += BLOCK
    needed = _needed(total, parameters)

    edge = tl.full((), float("inf"), tl.float32)
    kept_mass = above
    start = tl.full((), 0, tl.int32)
    while start < count:
        slots = start + lanes
        values, mass, alive = _survivors(undecided, greater, slots, count, rank, peak, k)
        kept = alive & (above + tl.load(before + slots, mask=slots < count, other=0) < needed)
        edge = tl.minimum(edge, tl.min(tl.where(kept, values, float("inf"))))
        kept_mass += tl.sum(tl.where(kept, mass, 0))
        ids = tl.load(undecided_ids + slots, mask=slots < count, other=0)
        tl.atomic_add(block_masses + ids // BLOCK, mass, mask=kept, sem="relaxed")
        start += BLOCK
    edge_id = tl.full((), -1, tl.int32)
    start = tl.full((), 0, tl.int32)
    while start < count:
        slots = start + lanes
        values, mass, alive = _survivors(undecided, greater, slots, count, rank, peak, k)
        kept = alive & (above + tl.load(before + slots, mask=slots < count, other=0) < needed)
        ids = tl.load(undecided_ids + slots, mask=slots < count, other=0)
        edge_id = tl.maximum(edge_id, tl.max(tl.where(kept & (values == edge), ids, -1)))
        start += BLOCK
    tl.store(levels + _EDGE, edge)
    tl.store(counts + _EDGE_ID, edge_id.to(tl.int64))

    target = (tl.load(uniform).to(tl.float64) * kept_mass.to(tl.float64)).to(tl.int64)
    target = tl.maximum(tl.minimum(target, kept_mass - 1), 0)
    tl.debug_barrier()  # the sums above were made by other threads
    slots = tl.arange(0, COUNT)
    masses = tl.load(block_masses + slots, mask=slots < blocks, other=0, cache_modifier=".cg")
    block = tl.minimum(tl.sum((tl.cumsum(masses) <= target).to(tl.int32)), blocks - 1)
    target -= tl.sum(tl.where(slots < block, masses, 0))
    ids = block * BLOCK + lanes
    values = tl.load(scaled + ids)
    place = _bin(peak - values, ids, tl.load(levels + _CUT), tl.load(levels + _SCALE), vocabulary, BINS)
    kept = (place < low) | (values > edge) | ((values == edge) & (ids <= edge_id))
    reached = tl.cumsum(tl.where(kept, _mass(peak - values), 0))
    chosen = block * BLOCK + tl.sum((reached <= target).to(tl.int32))
    _put(token, seen, tl.where(kept_mass > 0, tl.minimum(chosen, vocabulary - 1), 0))


def argmax(logits: Tensor, rules: Rules, scratch: Scratch, token: Tensor, *, pdl: bool = False) -> None:
    """Writes the id with the largest logit to ``token`` int64 [1]; of equal ones the lowest. Two launches.

    logits [V] float32 (bfloat16 and float16 are read as such), contiguous; ids from ``scratch.vocabulary`` up are
    padding. Of ``rules`` the penalty and the mask apply. NaN is never chosen; with nothing possible the token is 0.
    """
    _check(logits, rules, scratch, token)
    blocks = scratch.blocks
    _block_argmax[(blocks,)](
        *(logits, scratch.maxima, scratch.places, rules.parameters, rules.allowed, rules.seen),
        *(logits.shape[0], scratch.vocabulary),
        BLOCK=_BLOCK,
        PDL=pdl,
        num_warps=4,
        **with_pdl(pdl),
    )
    _last_argmax[(1,)](
        *(scratch.maxima, scratch.places, token, rules.seen, blocks),
        COUNT=triton.next_power_of_2(blocks),
        PDL=pdl,
        num_warps=4,
        **with_pdl(pdl),
    )


def sample(
    logits: Tensor, rules: Rules, uniform: Tensor, scratch: Scratch, token: Tensor, *, pdl: bool = False
) -> None:
    """Draws an id and writes it to ``token`` int64 [1]. Five launches.

    logits as in ``argmax``; uniform float32 [1] is a random number in [0, 1). Chosen is the first id, in order of ids,
    at which the sum of the kept probabilities exceeds ``uniform`` times their total.
    """
    _check(logits, rules, scratch, token)
    s, blocks, vocabulary = scratch, scratch.blocks, scratch.vocabulary
    padded = triton.next_power_of_2(blocks)
    options = {"PDL": pdl, **with_pdl(pdl)}
    _prepare[(blocks,)](
        *(logits, s.logits, s.maxima, s.minima, s.bin_masses, s.bin_counts, s.counts),
        *(rules.parameters, rules.allowed, rules.seen, logits.shape[0], vocabulary),
        BLOCK=_BLOCK,
        BINS=_BINS,
        num_warps=4,
        **options,
    )
    _histogram[(blocks,)](
        *(s.logits, s.maxima, s.minima, s.bin_masses, s.bin_counts, s.counts, s.levels, rules.parameters),
        *(vocabulary, blocks),
        BLOCK=_BLOCK,
        BINS=_BINS,
        COUNT=padded,
        num_warps=4,
        **options,
    )
    _select[(blocks,)](
        *(s.logits, s.bin_masses, s.bin_counts, s.block_masses, s.undecided, s.undecided_ids, s.counts, s.levels),
        *(rules.parameters, vocabulary),
        BLOCK=_BLOCK,
        BINS=_BINS,
        num_warps=8,
        **options,
    )
    _rank[(min(_PROGRAMS, triton.cdiv(vocabulary, _RANKED)),)](
        *(s.undecided, s.undecided_ids, s.before, s.greater, s.counts, s.levels),
        ROWS=_RANKED,
        COLS=256,
        num_warps=4,
        **options,
    )
    _draw[(1,)](
        *(s.logits, s.block_masses, s.undecided, s.undecided_ids, s.before, s.greater, s.counts, s.levels),
        *(rules.parameters, uniform, token, rules.seen, vocabulary, blocks),
        BLOCK=_BLOCK,
        BINS=_BINS,
        COUNT=padded,
        num_warps=8,
        **options,
    )


def kept(scratch: Scratch) -> Tensor:
    """Which ids the last ``sample`` could have drawn: boolean [vocabulary]. For tests and reports; it waits."""
    edge, edge_id = scratch.levels[_EDGE.value], scratch.counts[_EDGE_ID.value]
    ids = torch.arange(scratch.vocabulary, device=edge.device)
    logits = scratch.logits[: scratch.vocabulary]
    return (logits > edge) | ((logits == edge) & (ids <= edge_id))


def _check(logits: Tensor, rules: Rules, scratch: Scratch, token: Tensor) -> None:
    vocabulary = scratch.vocabulary
    needs = (
        ("logits", logits.dim() == 1 and logits.is_contiguous() and logits.shape[0] >= vocabulary, "contiguous [V]"),
        ("token", token.dtype == torch.int64 and token.numel() == 1, "int64 [1]"),
        ("parameters", rules.parameters.dtype == torch.float32 and rules.parameters.shape == (4,), "float32 [4]"),
        ("allowed", _holds(rules.allowed, torch.int32, triton.cdiv(vocabulary, 32)), "int32 [V / 32]"),
        ("seen", _holds(rules.seen, torch.uint8, logits.shape[0]), "uint8 [V]"),
    )
    for name, good, wanted in needs:
        if not good:
            raise ValueError(f"{name} cannot be used for a vocabulary of {vocabulary}: it must be {wanted}")


def _holds(tensor: Tensor | None, dtype: torch.dtype, size: int) -> bool:
    return tensor is None or (tensor.dtype == dtype and tensor.numel() >= size and tensor.is_contiguous())


def reference_argmax(logits: Tensor, rules: Rules, vocabulary: int) -> int:
    """What ``argmax`` chooses."""
    values = _reference_adjusted(logits, rules, vocabulary)
    return int((values == values.max()).nonzero()[0])


def reference_probabilities(logits: Tensor, rules: Rules, vocabulary: int) -> Tensor:
    """The distribution that ``sample`` draws from, [vocabulary] float64 on the CPU; zeros if nothing is possible."""
    temperature, top_k, top_p, _ = rules.parameters.double().tolist()
    values = _reference_adjusted(logits, rules, vocabulary) / temperature
    if top_k:
        smallest = values.topk(min(int(top_k), vocabulary)).values[-1]
        values = values.masked_fill(values < smallest, -math.inf)
    if values.max() == -math.inf:
        return torch.zeros_like(values)
    ordered, order = torch.sort(torch.softmax(values, dim=-1), descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    probabilities = torch.zeros_like(values)
    probabilities[order] = torch.where((before < top_p) | (torch.arange(vocabulary) == 0), ordered, 0.0)
    return probabilities / probabilities.sum()


def reference_sample(logits: Tensor, rules: Rules, uniform: float, vocabulary: int) -> int:
    """What ``sample`` draws, but for rounding where ``uniform`` falls between two ids."""
    reached = reference_probabilities(logits, rules, vocabulary).cumsum(dim=-1)
    past = (reached > uniform * reached[-1]).nonzero()
    return int(past[0]) if len(past) else 0


def _reference_adjusted(logits: Tensor, rules: Rules, vocabulary: int) -> Tensor:
    values = logits[:vocabulary].double().cpu()
    if rules.seen is not None:
        penalty = float(rules.parameters[3])
        penalized = torch.where(values > 0, values / penalty, values * penalty)
        values = torch.where(rules.seen[:vocabulary].cpu() != 0, penalized, values)
    if rules.allowed is not None:
        ids = torch.arange(vocabulary)
        bits = rules.allowed.cpu()[ids // 32] >> (ids % 32).int() & 1
        values = values.masked_fill(bits == 0, -math.inf)
    return values.masked_fill(values.isnan(), -math.inf)
