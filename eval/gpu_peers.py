"""Speed of other systems at Qwen-7B's shape on one CUDA card: batch 1, random weights, each in its own process.

    python eval/gpu_peers.py --gpt-fast .gpu/gpt-fast --json OUT       the default peers
    python eval/gpu_peers.py --peers copy,gpt-fast-int4 --gpt-fast DIR  some of them
    python eval/gpu_peers.py --tiny --peers copy,transformers           a toy shape on the CPU, to try the script

copy                 device-to-device copy (bytes read plus written), a sum (bytes read) and a square bf16 product
gpt-fast-bf16        gpt-fast with torch.compile as its generate.py does it: 512 tokens after a prompt of 5
gpt-fast-int4        the same with its int4 linears (tinygemm, groups of 128), lm_head left in bf16
transformers         Qwen2ForCausalLM, eager, SDPA: prefill (logits of the last position), generate() with DynamicCache
transformers-static  generate() with StaticCache, which compiles the model in mode reduce-overhead: 256 tokens;
                     then that compiled forward alone, without generate()'s loop around it
gpt-fast-bf16-2k, gpt-fast-int4-2k   256 tokens after a prompt of 2048; not run unless named, each compiles anew

gpt-fast is not part of this project: --gpt-fast names its folder (github.com/meta-pytorch/gpt-fast, BSD-3); without it
those peers are left out. Its attention is held to the math backend, which its source asks for so that the compiler
generates it; newer versions of torch would also allow cuDNN there.

Decoding is greedy (gpt-fast by top_k=1), timed over whole generations without the prefill, sampling included; the
first generation, which compiles, is reported as warm-up and not counted. The share of the roofline is the bytes that a
token must read over the best copy bandwidth of the same run: every matrix once (int4: half a byte a weight and a bf16
scale for each 128; the head in bf16) and the KV cache at the mean context. For prefill it is the operations that the
prompt needs over the best product.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

GROUP = 128  # weights that share a scale in int4
STD = 0.02  # of the random weights


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder with as many heads for keys as for queries, and an untied lm_head."""

    layers: int = 32
    hidden: int = 4096
    heads: int = 32
    ffn: int = 11008
    vocab: int = 151936

    @property
    def layer_weights(self) -> int:
        return self.layers * self.hidden * (4 * self.hidden + 3 * self.ffn)

    def bytes_per_token(self, int4: bool, context: float) -> float:
        """Bytes that decoding one token must read."""
        per_weight = 0.5 + 2 / GROUP if int4 else 2.0
        kv = 2 * self.layers * self.hidden * 2 * context
        return self.layer_weights * per_weight + 2 * self.vocab * self.hidden + kv

    def prefill_flops(self, tokens: int) -> float:
        return 2.0 * self.layer_weights * tokens + 2.0 * self.layers * self.hidden * tokens**2


@dataclass(frozen=True, slots=True)
class Plan:
    """What every peer measures, and on what."""

    device: str = "cuda"
    shape: Shape = Shape()
    copy_mib: int = 4096
    product: int = 8192
    prefill: tuple[int, ...] = (2048, 8192)
    prompt: int = 5
    long_prompt: int = 2048
    tokens: int = 512  # gpt-fast
    long_tokens: int = 256  # gpt-fast after the long prompt
    static_tokens: int = 256
    eager_tokens: int = 64


TINY = Plan("cpu", Shape(2, 256, 2, 512, 1024), 4, 128, (16, 32), 5, 40, 12, 8, 8, 4)

Row = dict[str, Any]
Emit = Callable[..., None]


def main() -> None:
    args = _arguments()
    plan = TINY if args.tiny else Plan()
    if args.worker:
        _worker(args.worker, plan, args.gpt_fast)
        return
    report = _new_report(args, plan)
    deadline = time.monotonic() + args.budget
    for name in args.peers:
        _run_peer(name, args, report, deadline)
        _judge(report, plan.shape)
        if args.json:
            args.json.write_text(json.dumps(report, indent=2))
    _print(report)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=_names, default=list(DEFAULT), help=f"of {','.join(PEERS)}")
    parser.add_argument("--gpt-fast", type=Path, help="folder of gpt-fast; without it those peers are left out")
    parser.add_argument("--timeout", type=float, default=150, help="seconds for one peer")
    parser.add_argument("--budget", type=float, default=240, help="seconds for all; what finds none left is not run")
    parser.add_argument("--tiny", action="store_true", help="a toy shape on the CPU")
    parser.add_argument("--json", type=Path, help="also write the figures here, after every peer")
    parser.add_argument("--worker", choices=PEERS, help=argparse.SUPPRESS)
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in PEERS]:
        raise argparse.ArgumentTypeError(f"no such peer: {', '.join(unknown)} (there are {', '.join(PEERS)})")
    return names


# The parent: starts a process for each peer and gathers its rows.


def _new_report(args: argparse.Namespace, plan: Plan) -> Row:
    commit = args.gpt_fast / "COMMIT" if args.gpt_fast else None
    return {
        "card": "cpu" if plan.device == "cpu" else "unknown",
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "triton": _version("triton"),
        "gpt_fast_commit": commit.read_text().strip() if commit and commit.is_file() else "unknown",
        "tiny": args.tiny,
        "rows": [],
        "failed": {},
        "seconds": {},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _run_peer(name: str, args: argparse.Namespace, report: Row, deadline: float) -> None:
    """Runs one peer; what it measured before a failure is kept."""
    limit = min(args.timeout, deadline - time.monotonic())
    if name.startswith("gpt-fast") and args.gpt_fast is None:
        report["failed"][name] = "left out: no --gpt-fast"
        return
    if limit <= 0:
        report["failed"][name] = "left out: no time left"
        return
    print(f"{name} (at most {limit:.0f} s)", flush=True)
    started = time.monotonic()
    rows, error = _collect(name, args, limit)
    report["seconds"][name] = round(time.monotonic() - started, 1)
    for row in rows:
        report["card"] = row.pop("card")
        report["rows"].append({"peer": name, **row})
    if error:
        report["failed"][name] = error
    print(f"  {name}: {report['seconds'][name]} s in all, {error or 'done'}", flush=True)


def _collect(name: str, args: argparse.Namespace, limit: float) -> tuple[list[Row], str | None]:
    """The rows a worker printed, and what went wrong. Its output goes to a file: no pipe for its children to hold."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", name]
    command += ["--tiny"] if args.tiny else []
    command += ["--gpt-fast", str(args.gpt_fast)] if args.gpt_fast else []
    with tempfile.TemporaryFile("w+") as out:
        try:
            code = subprocess.run(command, stdout=out, timeout=limit, check=False).returncode
            error = f"exit code {code}" if code else None
        except subprocess.TimeoutExpired:
            error = f"stopped after {limit:.0f} s"
        out.seek(0)
        return [json.loads(line) for line in out if line.startswith('{"case"') and line.endswith("}\n")], error


def _judge(report: Row, shape: Shape) -> None:
    """Sets every figure against the bandwidth and the product of the same run, where they were measured."""
    best = {row["case"]: row["best"] for row in report["rows"] if row["peer"] == "copy"}
    bandwidth, product = best.get("copy GB/s"), best.get("product TFLOP/s")
    for row in report["rows"]:
        if "context" in row:
            row["gb_per_token"] = shape.bytes_per_token(row["weights"] == "int4", row["context"]) / 1e9
            moved = row["tokens_per_second"] * row["gb_per_token"]
            row["roofline_share"] = moved / bandwidth if bandwidth else None
        elif "prefill" in row:
            done = shape.prefill_flops(row["prefill"]) / 1e12 / (row["ms"] / 1e3)
            row["roofline_share"] = done / product if product else None


def _print(report: Row) -> None:
    print(f"\n{report['card']}, torch {report['torch']}, transformers {report['transformers']}", end="")
    print(f", triton {report['triton']}, gpt-fast {report['gpt_fast_commit']}")
    for row in report["rows"]:
        if row["peer"] == "copy":
            print(f"  {row['case']:20} best {row['best']:8.1f}  median {row['median']:8.1f}")
    print(f"  {'peer':20} {'case':34} {'tok/s':>9} {'ms':>8} {'of roof':>8} {'peak GB':>8} {'warm-up s':>9}")
    for row in report["rows"]:
        if row["peer"] != "copy":
            share = f"{row['roofline_share']:8.3f}" if row["roofline_share"] is not None else f"{'-':>8}"
            speed = f"{row['tokens_per_second']:9.1f} {row['ms']:8.2f}"
            memory = f"{row['peak_gb']:8.2f} {row['warmup_seconds']:9.1f}"
            print(f"  {row['peer']:20} {row['case']:34} {speed} {share} {memory}")
    for name, reason in report["failed"].items():
        print(f"  {name}: {reason}")


# The workers: each prints a line of JSON as soon as a figure is there. Progress goes to stderr.


def _worker(name: str, plan: Plan, gpt_fast: Path | None) -> None:
    torch.manual_seed(0)
    card = torch.cuda.get_device_name() if plan.device == "cuda" else "cpu"

    def emit(case: str, **values: Any) -> None:
        print(json.dumps({"case": case, **values, "card": card}), flush=True)

    PEERS[name](plan, emit, gpt_fast)


def _note(text: str) -> None:
    print(f"    {text}", file=sys.stderr, flush=True)


@contextmanager
def _phase(text: str, device: str) -> Iterator[None]:
    started = _clock(device)
    yield
    _note(f"{text}: {_clock(device) - started:.1f} s")


def _clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _seconds(work: Callable[[], Any], device: str) -> float:
    started = _clock(device)
    work()
    return _clock(device) - started


def _peak(device: str) -> Row:
    """The most memory held since the last call; the graphs' private pools count as reserved."""
    if device != "cuda":
        return {"peak_gb": 0.0, "peak_allocated_gb": 0.0}
    peak = torch.cuda.max_memory_reserved() / 1e9
    allocated = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return {"peak_gb": round(peak, 3), "peak_allocated_gb": round(allocated, 3)}


def _emit_decode(emit: Emit, case: str, rates: list[float], warmup: float, plan: Plan, **values: Any) -> None:
    rate = statistics.median(rates)
    _note(f"{case}: {rate:.1f} tok/s, warm-up {warmup:.1f} s")
    emit(
        case,
        tokens_per_second=rate,
        ms=1e3 / rate,
        runs=rates,
        warmup_seconds=warmup,
        **values,
        **_peak(plan.device),
    )


def _compiled() -> Row:
    """How often the compiler ran, and the graphs it did not hand to CUDA graphs (more than none: read the log)."""
    counters = importlib.import_module("torch._dynamo.utils").counters
    return {
        "graphs": counters["stats"]["unique_graphs"],
        "cudagraph_skips": counters["inductor"]["cudagraph_skips"],
    }


# copy


def _copy(plan: Plan, emit: Emit, _: Path | None) -> None:
    _memory(plan, emit)
    left = torch.randn(plan.product, plan.product, device=plan.device, dtype=torch.bfloat16)
    right = torch.randn_like(left)
    _emit_rate(emit, "product TFLOP/s", 2 * plan.product**3 / 1e12, lambda: left @ right, plan.device)


def _memory(plan: Plan, emit: Emit) -> None:
    source = torch.empty(plan.copy_mib * 2**18, device=plan.device).normal_()
    target = torch.empty_like(source)
    size = source.numel() * 4 / 1e9
    _emit_rate(emit, "copy GB/s", 2 * size, lambda: target.copy_(source), plan.device)
    _emit_rate(emit, "read GB/s", size, source.sum, plan.device)


def _emit_rate(emit: Emit, case: str, amount: float, work: Callable[[], Any], device: str) -> None:
    """Nine samples of ten calls each, after one that is not counted."""

    def ten() -> None:
        for _ in range(10):
            work()

    rates = [10 * amount / _seconds(ten, device) for _ in range(10)][1:]
    emit(case, best=max(rates), median=statistics.median(rates), runs=rates)


# transformers


def _transformers(plan: Plan, emit: Emit, _: Path | None) -> None:
    model = _qwen2(plan)
    for tokens in plan.prefill:
        _prefill(model, plan, tokens, emit)
    generate = _generation(model, plan, plan.eager_tokens)
    warmup = _seconds(generate, plan.device)
    rates = [generate() for _ in range(2)]
    context = plan.prompt + plan.eager_tokens / 2
    case = f"decode {plan.eager_tokens}, eager, dynamic cache"
    _emit_decode(emit, case, rates, warmup, plan, weights="bf16", context=context)


def _transformers_static(plan: Plan, emit: Emit, _: Path | None) -> None:
    from transformers import CompileConfig, StaticCache

    model = _qwen2(plan)
    config = CompileConfig(mode="reduce-overhead", dynamic=False)
    config._compile_all_devices = plan.device == "cpu"  # type: ignore[assignment]
    # One cache for all the generations: generate() would make a new one each time, and the graph be recorded anew.
    cache = StaticCache(config=model.config, max_cache_len=plan.prompt + plan.static_tokens)
    inputs = _recorded(model, config)
    generate = _generation(model, plan, plan.static_tokens, cache, compile_config=config)
    warmup = _seconds(generate, plan.device)
    rates = [generate() for _ in range(2)]
    context = plan.prompt + plan.static_tokens / 2
    case = f"decode {plan.static_tokens}, static cache, compiled"
    _emit_decode(emit, case, rates, warmup, plan, weights="bf16", context=context, **_compiled())
    rates = [_forward_rate(inputs, cache, plan) for _ in range(3)][1:]
    _emit_decode(emit, "its compiled forward alone", rates, 0.0, plan, weights="bf16", context=context, **_compiled())


def _qwen2(plan: Plan) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = plan.shape
    config = Qwen2Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        initializer_range=STD,
        bos_token_id=None,
        eos_token_id=None,
    )
    with _phase("build Qwen2ForCausalLM", plan.device), torch.device(plan.device):
        model = Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
        _randomise(model)
    _peak(plan.device)
    return model


@torch.no_grad()
def _randomise(model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.normal_(0, STD)


def _ids(plan: Plan, tokens: int) -> torch.Tensor:
    return torch.randint(0, plan.shape.vocab, (1, tokens), device=plan.device)


@torch.no_grad()
def _prefill(model: Any, plan: Plan, tokens: int, emit: Emit) -> None:
    ids = _ids(plan, tokens)

    def prefill() -> None:
        model(ids, use_cache=True, logits_to_keep=1)

    warmup = sum(_seconds(prefill, plan.device) for _ in range(2))
    times = [1e3 * _seconds(prefill, plan.device) for _ in range(5)]
    ms = statistics.median(times)
    _note(f"prefill {tokens}: {ms:.1f} ms")
    rate = tokens / ms * 1e3
    case = f"prefill {tokens}, eager"
    emit(
        case,
        tokens_per_second=rate,
        ms=ms,
        runs=times,
        prefill=tokens,
        weights="bf16",
        warmup_seconds=warmup,
        **_peak(plan.device),
    )


class _Ticks:
    """A streamer for generate() that keeps the time of each token; it is handed the prompt first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass

    def rate(self) -> float:
        return (len(self.times) - 2) / (self.times[-1] - self.times[1])


def _generation(model: Any, plan: Plan, tokens: int, cache: Any = None, **options: Any) -> Callable[[], float]:
    """Makes a call of generate() that gives the tokens a second after the first one."""
    prompt = _ids(plan, plan.prompt)

    def generate() -> float:
        ticks = _Ticks()
        if cache is not None:
            cache.reset()
            options["past_key_values"] = cache
        mask = torch.ones_like(prompt)
        model.generate(
            prompt,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=tokens,
            streamer=ticks,
            use_cache=True,
            **options,
        )
        return ticks.rate()

    return generate


def _recorded(model: Any, config: Any) -> Row:
    """Has generate() leave the inputs of its last compiled step here, with the compiled forward as ``call``."""
    inputs: Row = {"call": model.get_compiled_call(config)}

    def record(**values: Any) -> Any:
        inputs["values"] = values
        return inputs["call"](**values)

    model._compiled_call = record
    return inputs


@torch.no_grad()
def _forward_rate(inputs: Row, cache: Any, plan: Plan) -> float:
    cache.reset()
    steps = plan.static_tokens // 2

    def decode() -> None:
        for _ in range(steps):
            inputs["call"](**inputs["values"])

    return steps / _seconds(decode, plan.device)


# gpt-fast


@torch.no_grad()
def _gpt_fast(plan: Plan, emit: Emit, folder: Path | None, int4: bool = False, long: bool = False) -> None:
    prompt, tokens = (plan.long_prompt, plan.long_tokens) if long else (plan.prompt, plan.tokens)
    with _phase("import gpt-fast", plan.device):
        gpt = _import_gpt_fast(folder)
    with _phase("build its model", plan.device):
        model = _gpt_fast_model(plan, int4)
    with torch.device(plan.device):
        model.setup_caches(max_batch_size=1, max_seq_length=prompt + tokens)
    _peak(plan.device)
    gpt.decode_one_token = torch.compile(gpt.decode_one_token, mode="reduce-overhead", fullgraph=True)
    generate = _gpt_fast_generation(gpt, model, plan, prompt, tokens)
    warmup = _seconds(generate, plan.device)
    rates = [generate() for _ in range(2)]
    case = f"decode {tokens} after {prompt}, compiled"
    weights = "int4" if int4 else "bf16"
    _emit_decode(emit, case, rates, warmup, plan, weights=weights, context=prompt + tokens / 2, **_compiled())


def _import_gpt_fast(folder: Path | None) -> Any:
    """Its generate.py. Tokenizer and GPTQ are not used here, and would ask for packages that may be missing."""
    if folder is None:
        raise SystemExit("this peer needs --gpt-fast")
    stub = ModuleType("tokenizer")
    stub.get_tokenizer = None  # type: ignore[attr-defined]
    sys.modules["tokenizer"] = stub
    sys.modules["GPTQ"] = None  # type: ignore[assignment]
    sys.path.insert(0, str(folder.resolve()))
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.backends.cuda.sdp_kernel = lambda **_: sdpa_kernel(SDPBackend.MATH)  # type: ignore[assignment]
    return importlib.import_module("generate")


def _gpt_fast_model(plan: Plan, int4: bool) -> Any:
    """Built without memory first, so that nothing exists in float32 or on the CPU."""
    shape = plan.shape
    modelling = importlib.import_module("model")
    modelling.transformer_configs["qwen-7b-shape"] = {
        "block_size": 8192,
        "vocab_size": shape.vocab,
        "n_layer": shape.layers,
        "n_head": shape.heads,
        "dim": shape.hidden,
        "intermediate_size": shape.ffn,
    }
    with torch.device("meta"):
        model = modelling.Transformer.from_name("qwen-7b-shape").to(torch.bfloat16)
        if int4:
            importlib.import_module("quantize").WeightOnlyInt4QuantHandler(model.layers, GROUP).convert_for_runtime()
    model = model.to_empty(device=plan.device).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.fill_(1)
        else:
            parameter.normal_(0, STD)
    for name, buffer in model.named_buffers():
        _fill_int4(name, buffer)
    return model


def _fill_int4(name: str, buffer: torch.Tensor) -> None:
    """Random weights in place. Packing only moves nibbles, so that random bits are random weights already packed."""
    if name.endswith(".weight"):
        bits = torch.randint(0, 256, (buffer.numel() * 4,), dtype=torch.uint8, device=buffer.device)
        buffer.copy_(bits.view(torch.int32).view_as(buffer))
    elif name.endswith(".scales_and_zeros"):
        buffer.normal_(0, STD / 20)
        buffer[..., 0].add_(STD / 4.6)  # a nibble's standard deviation is 4.6
    else:
        raise ValueError(f"a buffer of gpt-fast that this script does not know: {name}")


def _gpt_fast_generation(gpt: Any, model: Any, plan: Plan, prompt: int, tokens: int) -> Callable[[], float]:
    """Makes a generation that gives the tokens a second of its decoding; prefill is eager, as in generate.py."""
    ids = _ids(plan, prompt)

    def generate() -> float:
        positions = torch.arange(prompt, device=plan.device)
        first = gpt.prefill(model, ids, positions, top_k=1).clone()
        position = torch.tensor([prompt], device=plan.device, dtype=torch.int)
        seconds = _seconds(
            lambda: gpt.decode_n_tokens(model, first.view(1, -1), position, tokens, top_k=1), plan.device
        )
        return tokens / seconds

    return generate


PEERS: dict[str, Callable[[Plan, Emit, Path | None], None]] = {
    "copy": _copy,
    "gpt-fast-bf16": _gpt_fast,
    "gpt-fast-int4": partial(_gpt_fast, int4=True),
    "transformers": _transformers,
    "transformers-static": _transformers_static,
    "gpt-fast-bf16-2k": partial(_gpt_fast, long=True),
    "gpt-fast-int4-2k": partial(_gpt_fast, int4=True, long=True),
}
DEFAULT = ("copy", "gpt-fast-bf16", "gpt-fast-int4", "transformers", "transformers-static")


if __name__ == "__main__":
    main()
