"""Speed and memory of our runtime at Qwen-7B's shape on one CUDA card: the profile of the original's README, and ours.

    python eval/gpu_speed.py                            bf16, int4, and int4 with an 8-bit KV cache
    python eval/gpu_speed.py --precision int4 --long    with the generation of 8192 tokens (most of a minute each)
    python eval/gpu_speed.py --json OUT

Weights are random (speed does not depend on them), batch 1, greedy unless said otherwise, the token read by the host.
Bytes of a decode step are those of the matrices and of the KV cache at the mean context, set against a
device-to-device copy measured in the same run (bytes read plus written). The peers are measured by gpu_peers.py.

"generate N" starts from one token, as the original's profile does (QwenLM/Qwen, README, "Profiling"); "decode at C"
is the mean over the tokens that follow a prompt of C. A warm step reads 200 new tokens on top of a cached prefix and
ends with its first token on the host.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from gpu_kernels import copy_bandwidth
from torch import nn

from qwen_agent.llm.cache import KVCache
from qwen_agent.llm.config import GenerationConfig, ModelConfig
from qwen_agent.llm.cuda import Choice, CudaModel
from qwen_agent.llm.generate import decode
from qwen_agent.llm.model import Model, RMSNorm
from qwen_agent.llm.quantization import QuantizedWeight
from qwen_agent.llm.quantized import QuantizedLinear

QWEN_7B = ModelConfig(
    architecture="QWenLMHeadModel",
    vocab=151936,
    hidden=4096,
    layers=32,
    heads=32,
    kv_heads=32,
    head_dim=128,
    ffn=11008,
    norm_eps=1e-6,
    rope_base=10000.0,
    train_length=8192,
    window=8192,
    qkv_bias=True,
    qk_norm=False,
    tied=False,
    dynamic_ntk=True,
    logn=True,
)
VOCABULARY = 151851  # ids that exist
GROUP = 128
PRECISIONS = ("bf16", "int4", "int4-kv8")
WARM = 200  # new tokens of a ReAct step
GREEDY = GenerationConfig(temperature=0.0)
SAMPLED = GenerationConfig(temperature=0.7, top_p=0.8, seed=0)


@dataclass
class Bench:
    """One precision: the model, what it chooses with, and the figures so far."""

    name: str
    model: CudaModel
    choice: Choice
    copy: float
    figures: dict[str, float]

    def note(self, what: str, value: float, more: str = "") -> None:
        self.figures[what] = value
        print(f"  {self.name:9} {what:34} {value:9.2f}   {more}", flush=True)


def main() -> None:
    args = _arguments()
    if len(args.precision) > 1:
        _one_process_each(args)
        return
    copy = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; copy {copy:.0f} GB/s", flush=True)
    figures = _profile(args.precision[0], copy, args.long)
    if args.json:
        about = {"card": torch.cuda.get_device_name(), "torch": torch.__version__, "copy GB/s": copy}
        args.json.write_text(json.dumps({args.precision[0]: about | figures}, indent=1))


def _one_process_each(args: argparse.Namespace) -> None:
    """So that no precision finds the memory of another."""
    results: dict[str, Any] = {}
    for precision in args.precision:
        with tempfile.TemporaryDirectory() as scratch:
            part = Path(scratch) / "figures.json"
            command = [sys.executable, __file__, "--precision", precision, "--json", str(part)]
            subprocess.run(command + ["--long"] * args.long, check=True)
            results |= json.loads(part.read_text())
        if args.json:
            args.json.write_text(json.dumps(results, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--long", action="store_true", help="also generate 8192 tokens from one")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


def _profile(precision: str, copy: float, long: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    int4 = precision.startswith("int4")
    model = CudaModel(random_model(QWEN_7B, int4), cache_dtype=torch.int8 if precision.endswith("kv8") else None)
    bench = Bench(precision, model, Choice(model, VOCABULARY), copy, {})
    started = time.perf_counter()
    model.warm_up()
    bench.note("compile and capture, s", time.perf_counter() - started)
    bench.note("weights, GB", torch.cuda.memory_allocated() / 1e9)
    for context in (512, 2048, 8192):
        _decode_at(bench, context - 64 if context == 8192 else context)
    _decode_at(bench, 512, SAMPLED, "sampled")
    _host_in_the_loop(bench, 512)
    for tokens in (512, 2048, *((8192,) if long else ())):
        _generate(bench, tokens)
    for tokens in (2048, 8192):
        _prefill(bench, tokens)
    for context in (2048, 8192 - WARM):
        _warm_step(bench, context)
    for op, kernel in model.kernels().items():
        print(f"  {precision:9} {op:20} {kernel}")
    return {"figures": bench.figures, "kernels": model.kernels()}


def _decode_at(bench: Bench, context: int, config: GenerationConfig = GREEDY, how: str = "") -> None:
    """64 tokens after a prompt of ``context``."""
    cache = _filled(bench.model, context, 64)
    seconds = _seconds(lambda: _follow(bench, cache, config, 64))
    moved = bytes_per_token(bench, context + 32)
    bench.note(
        f"decode at {context} {how}, tok/s".replace(" ,", ","),
        64 / seconds,
        f"{moved / 1e9:.2f} GB a token, {moved * 64 / seconds / 1e9 / bench.copy:.2f} of the copy bandwidth",
    )


def _host_in_the_loop(bench: Bench, context: int) -> None:
    """The same with a mask from the host for every token, as a grammar has it: the device waits for the host."""
    cache = _filled(bench.model, context, 66)
    mask = bytes([0xFF]) * (-(-VOCABULARY // 8))
    ids: list[int] = []

    def generate() -> None:
        cache.truncate(context)
        sample = bench.choice.sampler(GREEDY)
        logits = bench.model.last_logits(torch.tensor([[7]], device="cuda"), cache)[0]
        list(islice(decode(bench.model, logits, cache, lambda x: [sample(x, ids, mask)], 65), 64))

    bench.note(f"decode at {context} with masks, tok/s", 64 / _seconds(generate))


def _generate(bench: Bench, tokens: int) -> None:
    cache = _filled(bench.model, 1, tokens - 1)
    torch.cuda.reset_peak_memory_stats()
    run = partial(_follow, bench, cache, GREEDY, tokens - 1)
    seconds = _seconds(run) if tokens < 2048 else _timed(run)  # long enough to need no repetition
    moved = bytes_per_token(bench, tokens // 2)
    rate = (tokens - 1) / seconds
    bench.note(f"generate {tokens}, tok/s", rate, f"{moved * rate / 1e9 / bench.copy:.2f} of the copy bandwidth")
    bench.note(f"generate {tokens}, peak GB", torch.cuda.max_memory_allocated() / 1e9)


def _prefill(bench: Bench, tokens: int) -> None:
    ids = torch.randint(0, VOCABULARY, (1, tokens), device="cuda")
    cache = bench.model.new_cache(tokens)

    def read() -> None:
        cache.truncate(0)
        int(bench.model.last_logits(ids, cache).argmax())

    torch.cuda.reset_peak_memory_stats()
    bench.note(f"prefill {tokens}, ms", 1e3 * _seconds(read, repeat=7))
    bench.note(f"prefill {tokens}, peak GB", torch.cuda.max_memory_allocated() / 1e9)


def _warm_step(bench: Bench, context: int) -> None:
    cache = _filled(bench.model, context, WARM)
    ids = torch.randint(0, VOCABULARY, (1, WARM), device="cuda")

    def read() -> None:
        cache.truncate(context)
        int(bench.model.last_logits(ids, cache)[0, :VOCABULARY].argmax())

    bench.note(f"warm step of {WARM} on {context}, ms", 1e3 * _seconds(read, repeat=9))


def _filled(model: CudaModel, context: int, more: int) -> KVCache:
    """A cache that holds ``context`` random tokens, with room for ``more``."""
    cache = model.new_cache(context, context + more)
    for table in (*cache.keys, *cache.values, *cache.key_scales, *cache.value_scales):
        if table.dtype == torch.int8:
            table.random_(-127, 128)
        else:
            table.normal_(0, 0.02 if cache.key_scales else 1)
    cache.length = context
    return cache


def _follow(bench: Bench, cache: KVCache, config: GenerationConfig, tokens: int) -> None:
    """Generate ``tokens`` as the runtime does, and forget them."""
    start = cache.length
    logits = bench.model.step.logits.clone()
    for _ in bench.choice.follow(logits, cache, config, [], tokens + 1):
        pass
    cache.truncate(start)


def _seconds(run: Callable[[], object], repeat: int = 3) -> float:
    """Median wall time of ``run``, which leaves nothing queued; the first run does not count."""
    return statistics.median([_timed(run) for _ in range(repeat + 1)][1:])


def _timed(run: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def bytes_per_token(bench: Bench, context: int) -> float:
    """What decoding one token must read: every matrix once, and the KV cache."""
    config = bench.model.config
    matrices = sum(product.nbytes for _, product in bench.model.weights.products())
    rows = 2 * config.layers * config.kv_heads * context
    each = config.head_dim + 2 if bench.model.cache_dtype == torch.int8 else config.head_dim * 2
    return matrices + rows * each


def random_model(config: ModelConfig, int4: bool) -> Model:
    """Random weights on the device; with ``int4`` all matrices but the head in the layout of Qwen-7B-Chat-Int4."""
    with torch.device("meta"):
        model = Model(config)
    for name, module in list(model.named_modules()):
        parent, _, leaf = name.rpartition(".")
        if int4 and isinstance(module, nn.Linear) and name != "head":
            setattr(model.get_submodule(parent), leaf, _random_int4(module))
            continue
        for key, parameter in list(module.named_parameters(recurse=False)):
            value = torch.empty(parameter.shape, dtype=torch.bfloat16, device="cuda").normal_(0, 0.02)
            if isinstance(module, RMSNorm):
                value.fill_(1.0)
            setattr(module, key, nn.Parameter(value, requires_grad=False))
    return model.eval()


def _random_int4(module: nn.Linear) -> QuantizedLinear:
    rows, columns = module.weight.shape
    weight = QuantizedWeight(
        qweight=_random_words(columns // 8, rows),
        qzeros=torch.full((columns // GROUP, rows // 8), 0x77777777, dtype=torch.int32, device="cuda"),
        scales=(torch.rand((columns // GROUP, rows), device="cuda") * 0.008).half(),
        g_idx=torch.arange(columns, dtype=torch.int32, device="cuda") // GROUP,
        bits=4,
        group_size=GROUP,
    )
    bias = None if module.bias is None else torch.zeros(rows, dtype=torch.bfloat16, device="cuda")
    return QuantizedLinear(weight, bias, torch.bfloat16)


def _random_words(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31, shape, device="cuda", dtype=torch.int64).to(torch.int32)


if __name__ == "__main__":
    main()
