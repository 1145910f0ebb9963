"""The fused CUDA path against the plain model: logits against float64, and greedy tokens.

    python eval/gpu_correctness.py                      the embedded model on this repository's README
    python eval/gpu_correctness.py --model DIR --text FILE --contexts 64 512 2048

For every context the plain model in float64 on the CPU gives the logits of the next token; the relative error
||logits - true|| / ||true|| of the plain and of the fused path is set beside it, read at once (a prompt), token by
token (the last 8), and as a suffix on a cached prefix. Then both paths decode greedily from the same prompt: in float32
every token must be the same; in bfloat16 the first that differs is shown with the distance of the two best logits.
Exit status 1 if a float32 token differs, or a fused path is further from the truth than twice the plain one (and than
1e-3); the 8-bit cache is only shown.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.cuda import Choice, CudaModel
from qwen_agent.llm.generate import Decoder, decode
from qwen_agent.llm.hub import resolve_model
from qwen_agent.llm.tokenizer import load_tokenizer
from qwen_agent.llm.weights import load_model

WITHIN = 1e-3  # of the truth: 4-bit products multiply in float16, whatever the model's dtype
GREEDY = GenerationConfig(temperature=0.0)
README = Path(__file__).parent.parent / "README.md"


def main() -> None:
    args = _arguments()
    folder = resolve_model(args.model)
    ids = load_tokenizer(folder).encode(args.text.read_text(encoding="utf-8"))
    true_model = load_model(folder, "cpu", torch.float64)
    truths = {n: true_model.last_logits(_row(ids[:n], "cpu"), true_model.new_cache(n))[0] for n in args.contexts}
    good = True
    for dtype, kv in ((torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, torch.int8)):
        plain = load_model(folder, "cuda", dtype)
        fused = CudaModel(plain, cache_dtype=kv)
        name = str(dtype).removeprefix("torch.") + (", 8-bit KV cache" if kv else "")
        print(f"\n{name}: {fused.kernels()}")
        for n in args.contexts:
            good &= _errors(plain, fused, ids, n, truths[n], lenient=kv is not None)
            good &= _tokens(plain, fused, ids[:n], args.tokens, exact=dtype == torch.float32)
    sys.exit(0 if good else 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="embedded, a folder or a hub id")
    parser.add_argument("--text", type=Path, default=README, help="text to read")
    parser.add_argument("--contexts", type=int, nargs="+", default=[40, 300, 1000], help="tokens of it")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to decode")
    return parser.parse_args()


def _errors(plain: Decoder, fused: CudaModel, ids: list[int], n: int, truth: Tensor, lenient: bool) -> bool:
    whole = _far(fused.last_logits(_row(ids[:n], "cuda"), fused.new_cache(n))[0], truth)
    cache = fused.new_cache(n)
    fused.last_logits(_row(ids[: n - 8], "cuda"), cache)
    for token in ids[n - 8 : n]:
        logits = fused.last_logits(_row([token], "cuda"), cache)[0]
    stepwise = _far(logits, truth)
    cache.truncate(n // 2)
    suffix = _far(fused.last_logits(_row(ids[n // 2 : n], "cuda"), cache)[0], truth)
    base = _far(plain.last_logits(_row(ids[:n], "cuda"), plain.new_cache(n))[0], truth)
    print(f"  context {n:5}: plain {base:.1e}; fused prompt {whole:.1e}, steps {stepwise:.1e}, suffix {suffix:.1e}")
    return lenient or max(whole, stepwise, suffix) < max(2 * base, WITHIN)


def _tokens(plain: Decoder, fused: CudaModel, ids: list[int], tokens: int, exact: bool) -> bool:
    expected, gaps = _greedy(plain, ids, tokens)
    cache, written = fused.new_cache(len(ids)), list(ids)
    logits = fused.last_logits(_row(ids, "cuda"), cache)[0]
    got = list(Choice(fused, fused.config.vocab).follow(logits, cache, GREEDY, written, tokens))
    same = next((i for i, pair in enumerate(zip(got, expected, strict=True)) if pair[0] != pair[1]), tokens)
    note = "" if same == tokens else f"; the two best logits of the plain path are {gaps[same]:.3f} apart there"
    print(f"  context {len(ids):5}: {same} of {tokens} greedy tokens alike{note}")
    return same == tokens or not exact


def _greedy(model: Decoder, ids: list[int], tokens: int) -> tuple[list[int], list[float]]:
    """The tokens, and for each how far the best logit was from the second."""
    gaps: list[float] = []

    def pick(logits: Tensor) -> list[int]:
        best = logits.float().topk(2)
        gaps.append(float(best.values[0] - best.values[1]))
        return [int(best.indices[0])]

    cache = model.new_cache(len(ids))
    logits = model.last_logits(_row(ids, "cuda"), cache)[0]
    return list(decode(model, logits, cache, pick, tokens)), gaps


def _row(ids: list[int], device: str) -> Tensor:
    return torch.tensor([ids], dtype=torch.int64, device=device)


def _far(logits: Tensor, truth: Tensor) -> float:
    return float((logits.double().cpu() - truth).norm() / truth.norm())


if __name__ == "__main__":
    main()
