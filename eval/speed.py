"""Load time, prefill and decode speed of a model on this machine's CPU, beside transformers in the same run.

For CUDA see gpu_speed.py (ours), gpu_peers.py (others) and kernels.py (each product).

    python eval/speed.py                          the embedded model on the CPU
    python eval/speed.py --model DIR --json OUT   another checkpoint; results also as JSON

Every figure is the median of --repeat rounds in which ours and the peer take turns, so that a busy machine slows both.
Decode is greedy at a context of --context tokens; its bytes are those of the weights that one token reads (packed
where they are packed) and of the KV cache, and are set against the read bandwidth measured in the same run.
The peer runs the same weights, dequantised to bfloat16, with transformers' own loop (eager, DynamicCache).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from dense import write_dense

from qwen_agent.llm.config import ModelConfig
from qwen_agent.llm.hub import resolve_model
from qwen_agent.llm.local import load_runtime
from qwen_agent.llm.model import Model


def main() -> None:
    args = _arguments()
    torch.manual_seed(0)
    folder = resolve_model(args.model)
    started = time.perf_counter()
    runtime = load_runtime(folder, device="cpu")
    load_seconds = time.perf_counter() - started
    model = runtime.model
    assert isinstance(model, Model)
    ids = torch.randint(100, 40_000, (1, args.context + args.tokens))
    with tempfile.TemporaryDirectory() as scratch:
        peer = None if args.no_peer else _peer(folder, Path(scratch))
    rows: dict[str, list[float]] = {}
    for round_ in range(args.repeat):
        print(f"round {round_ + 1} of {args.repeat}", flush=True)
        _measure(rows, "ours", *_ours(model, ids, args.context))
        if peer is not None:
            _measure(rows, "transformers bf16", *_theirs(peer, ids, args.context))
        rows.setdefault("read GB/s", []).append(_bandwidth())
    _report(args, model, rows, load_seconds)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="embedded, a folder or a hub id")
    parser.add_argument("--context", type=int, default=512, help="prompt tokens")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to decode")
    parser.add_argument("--repeat", type=int, default=5, help="rounds")
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


Timed = tuple[Callable[[], Any], Callable[[Any], None], int, int]  # prefill, decode, tokens read, tokens written


def _measure(
    rows: dict[str, list[float]],
    name: str,
    prefill: Callable[[], Any],
    decode: Callable[[Any], None],
    read: int,
    written: int,
) -> None:
    started = time.perf_counter()
    state = prefill()
    middle = time.perf_counter()
    decode(state)
    rows.setdefault(f"{name}: prefill tok/s", []).append(read / (middle - started))
    rows.setdefault(f"{name}: decode tok/s", []).append(written / (time.perf_counter() - middle))


def _ours(model: Model, ids: torch.Tensor, context: int) -> Timed:
    def prefill() -> Any:
        cache = model.new_cache(context)
        return cache, model.last_logits(ids[:, :context], cache)

    def decode(state: Any) -> None:
        cache, logits = state
        for _ in range(ids.shape[1] - context):
            logits = model.last_logits(logits.argmax(-1, keepdim=True), cache)

    return prefill, decode, context, ids.shape[1] - context


def _theirs(peer: Any, ids: torch.Tensor, context: int) -> Timed:
    @torch.inference_mode()
    def prefill() -> Any:
        return peer(ids[:, :context], use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def decode(out: Any) -> None:
        for _ in range(ids.shape[1] - context):
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            out = peer(token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)

    return prefill, decode, context, ids.shape[1] - context


def _peer(folder: Path, scratch: Path) -> Any:
    """The same weights in transformers, dequantised."""
    from transformers import AutoModelForCausalLM

    write_dense(folder, scratch)
    return AutoModelForCausalLM.from_pretrained(scratch, dtype=torch.bfloat16).eval()


def _bandwidth() -> float:
    """GB/s of a large sum: what reading memory can reach here."""
    data = torch.ones(64 * 2**20)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        data.sum()
        times.append(time.perf_counter() - started)
    return data.numel() * 4 / min(times) / 1e9


def bytes_per_token(config: ModelConfig, context: int) -> int:
    """Bytes that decoding one token must read: every matrix once (one row of the embedding), and the KV cache."""
    width = (config.heads + 2 * config.kv_heads) * config.head_dim
    layer = config.hidden * (width + config.heads * config.head_dim + 3 * config.ffn)
    quantization = config.quantization
    kv = 2 * config.layers * config.kv_heads * config.head_dim * 2 * context
    if quantization is None:
        return 2 * (config.layers * layer + config.vocab * config.hidden) + kv
    group = quantization.default.group_size
    per_weight = quantization.default.bits / 8 + 4 / group  # a bf16 scale and offset per group
    return int(config.layers * layer * per_weight) + config.vocab * config.hidden + kv


def _report(args: argparse.Namespace, model: Model, rows: dict[str, list[float]], load_seconds: float) -> None:
    medians = {name: statistics.median(values) for name, values in rows.items()}
    moved = bytes_per_token(model.config, args.context + args.tokens // 2)
    ours, bandwidth = medians["ours: decode tok/s"], medians["read GB/s"]
    print(
        f"\n{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"context {args.context}, {args.tokens} tokens decoded, {args.repeat} rounds, load {load_seconds:.2f} s")
    for name, value in medians.items():
        spread = f"{min(rows[name]):.1f} .. {max(rows[name]):.1f}"
        print(f"  {name:34} {value:8.1f}   ({spread})")
    print(
        f"  decode reads {moved / 1e6:.1f} MB a token = {100 * ours * moved / 1e9 / bandwidth:.0f} % of the bandwidth"
    )
    if "transformers bf16: decode tok/s" in medians:
        ratio = {
            k: medians[f"ours: {k} tok/s"] / medians[f"transformers bf16: {k} tok/s"] for k in ("decode", "prefill")
        }
        print(f"  ours / transformers: decode {ratio['decode']:.2f}x, prefill {ratio['prefill']:.2f}x")
    kernels = {str(module.kernel) for module in model.modules() if hasattr(module, "kernel")}
    print(f"  kernels: {', '.join(sorted(kernels)) or 'dense'}")
    if args.json:
        args.json.write_text(json.dumps({"medians": medians, "rounds": rows, "load_seconds": load_seconds}, indent=2))


if __name__ == "__main__":
    main()
