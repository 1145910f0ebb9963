"""Which tool does a model choose first, and with which arguments? BFCL questions in Qwen's ReAct format.

    python eval/tool_choice.py run MODEL --data bfcl --out raw.jsonl            our own runtime
    python eval/tool_choice.py run MODEL --data bfcl --out raw.jsonl --reference    the same through transformers
    python eval/tool_choice.py score raw.jsonl [other.jsonl] --data bfcl        table, and a comparison pair by pair

Decoding is greedy and, unless --unconstrained, the name after "Action:" can only be one of the offered tools.
A run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bfcl import Case, Outcome, judge, load

from qwen_agent.prompt import ReActTemplate, build
from qwen_agent.types import IM_END, Control, Prompt

CATEGORIES = {"multiple": 200, "simple_python": 200, "irrelevance": 240}
NEW_TOKENS = 140
STOPS = ("\nObservation:", "\nFinal Answer:")  # after either, the first step is decided
TEMPLATE = ReActTemplate("APIs", ",")  # the embedded model was trained on both nouns; this one is the later official

Answer = tuple[Case, str, int]  # the case, the model's text, its tokens


def main() -> None:
    args = _arguments()
    cases = [case for name in args.categories for case in load(args.data, name, min(args.limit, CATEGORIES[name]))]
    if args.command == "run":
        run(args, cases)
    else:
        score(args.files, {(case.category, case.id): case for case in cases})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="ask a model, write its raw texts")
    runs.add_argument("model", type=Path, help="model folder")
    runs.add_argument("--out", type=Path, required=True, help="JSON Lines file for the raw texts")
    runs.add_argument("--reference", action="store_true", help="run through transformers in bf16, in batches")
    runs.add_argument("--unconstrained", action="store_true", help="let the model misspell names")
    runs.add_argument("--batch", type=int, default=32, help="prompts at once (reference only)")
    runs.add_argument("--device", default="cpu", help="cpu or cuda (reference only)")
    scores = commands.add_parser("score", help="score one file of raw texts, or compare two")
    scores.add_argument("files", type=Path, nargs="+", help="what `run` wrote")
    for command in (runs, scores):
        command.add_argument("--data", type=Path, required=True, help="folder with the BFCL files")
        command.add_argument("--limit", type=int, default=10**6, help="questions a category")
        command.add_argument("--categories", nargs="+", choices=CATEGORIES, default=list(CATEGORIES))
    return parser.parse_args()


def run(args: argparse.Namespace, cases: list[Case]) -> None:
    done = {(row["category"], row["id"]) for row in _rows(args.out)} if args.out.exists() else set()
    cases = [case for case in cases if (case.category, case.id) not in done]
    answers = _reference(args, cases) if args.reference else _own(args, cases)
    started, tokens = time.monotonic(), 0
    with args.out.open("a", encoding="utf-8") as out:
        for count, (case, text, generated) in enumerate(answers, 1):
            row = {"category": case.category, "id": case.id, "text": text, "tokens": generated}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            out.flush()
            tokens += generated
            seconds = time.monotonic() - started
            print(f"\r{count}/{len(cases)}  {tokens} tokens  {seconds:.0f} s", end="", flush=True)
    print()


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


# ---- our own runtime, one prompt at a time


def _own(args: argparse.Namespace, cases: list[Case]) -> Iterator[Answer]:
    from qwen_agent import load_runtime
    from qwen_agent.llm.config import GenerationConfig
    from qwen_agent.llm.grammar import ChoiceAfter
    from qwen_agent.llm.runtime import text_of

    runtime = load_runtime(args.model)
    for case in cases:
        names = tuple(function.name for function in case.functions)
        config = GenerationConfig(
            max_new_tokens=NEW_TOKENS,
            stop=STOPS,
            constraint=None if args.unconstrained else ChoiceAfter("Action:", names),
        )
        *_, last = runtime.stream(build(case.question, tools=case.functions, template=TEMPLATE), config)
        yield case, text_of(last.output), last.usage.generated_tokens


# ---- the reference: transformers, dequantised, in batches


def _reference(args: argparse.Namespace, cases: list[Case]) -> Iterator[Answer]:
    import torch
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    model = _load_reference(args.model).to(args.device)
    encoded = [
        (case, _encode(tokenizer, build(case.question, tools=case.functions, template=TEMPLATE))) for case in cases
    ]
    encoded.sort(key=lambda pair: len(pair[1]), reverse=True)
    for start in range(0, len(encoded), args.batch):
        batch = encoded[start : start + args.batch]
        spellings = [[] if args.unconstrained else _spellings(tokenizer, case) for case, _ in batch]
        with torch.inference_mode():
            texts = _generate(model, tokenizer, [ids for _, ids in batch], spellings)
        for (case, _), ids in zip(batch, texts, strict=True):
            yield case, tokenizer.decode(ids, skip_special_tokens=False), len(ids)


def _load_reference(folder: Path) -> Any:
    import torch
    from dense import dense_checkpoint
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    described, weights = dense_checkpoint(folder, torch.bfloat16)
    ALL_ATTENTION_FUNCTIONS["sdpa"] = _attention
    model: Any = Qwen2ForCausalLM(Qwen2Config(**described))
    model.to(torch.bfloat16)
    model.load_state_dict(weights, strict=False)
    return model.eval()


def _attention(module: Any, q: Any, k: Any, v: Any, mask: Any, scaling: float, **_: Any) -> tuple[Any, None]:
    """Attention that reads each key head once for its group of query heads; transformers copies it for every one."""
    import torch.nn.functional as F

    batch, heads, length, size = q.shape
    if length > 1:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=True)
    else:
        grouped = q.view(batch, k.shape[1], -1, size)
        out = F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask, scale=scaling)
    return out.reshape(batch, heads, length, size).transpose(1, 2), None


def _encode(tokenizer: Any, prompt: Prompt) -> list[int]:
    ids: list[int] = []
    for segment in prompt:
        if isinstance(segment, Control):
            ids.append(tokenizer.token_to_id(segment.name))
        else:
            ids += tokenizer.encode(segment.content, add_special_tokens=False).ids
    return ids


def _spellings(tokenizer: Any, case: Case) -> list[list[int]]:
    """The token ids that may follow "Action:", one list per tool, newline included."""
    newline = tokenizer.encode("\n").ids
    return [tokenizer.encode(f" {function.name}").ids + newline for function in case.functions]


def _generate(
    model: Any, tokenizer: Any, prompts: list[list[int]], spellings: list[list[list[int]]]
) -> list[list[int]]:
    import torch
    from transformers import StaticCache

    end = tokenizer.token_to_id(IM_END.name)
    action = tokenizer.encode("\nAction:").ids
    stops = [[end], *(tokenizer.encode(text).ids for text in STOPS)]
    width, count = max(map(len, prompts)), len(prompts)
    ids = torch.full((count, width), end)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)  # padded on the left
    lengths = torch.tensor([[len(prompt)] for prompt in prompts])
    mask = (torch.arange(width) >= width - lengths).long()
    position = (torch.arange(width) - (width - lengths)).clamp_min(0)
    ids, mask, position = (tensor.to(model.device) for tensor in (ids, mask, position))
    cache = StaticCache(config=model.config, max_cache_len=width + NEW_TOKENS)
    texts: list[list[int]] = [[] for _ in prompts]
    done = [False] * count
    for _ in range(NEW_TOKENS):
        out = model(input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=cache, logits_to_keep=1)
        logits = out.logits[:, -1].cpu()
        for row, text in enumerate(texts):
            if not done[row]:
                text.append(_next_token(logits[row], _allowed(text, action, spellings[row])))
                done[row] = any(text[-len(stop) :] == stop for stop in stops)
        if all(done):
            break
        ids = torch.tensor([[text[-1]] for text in texts], device=model.device)
        mask = torch.cat((mask, mask.new_ones(count, 1)), dim=1)
        position = position[:, -1:] + 1
    return texts


def _allowed(text: list[int], action: list[int], spellings: list[list[int]]) -> set[int]:
    """Token ids that continue a tool's name if ``text`` is inside one; empty = anything goes."""
    for start in range(len(text), len(action) - 1, -1):
        if text[start - len(action) : start] == action:
            name = text[start:]
            return {spelling[len(name)] for spelling in spellings if spelling[: len(name)] == name != spelling}
    return set()


def _next_token(logits: Any, allowed: set[int]) -> int:
    if not allowed:
        return int(logits.argmax())
    candidates = sorted(allowed)
    return candidates[int(logits[candidates].argmax())]


# ---- scores


def score(files: list[Path], cases: dict[tuple[str, str], Case]) -> None:
    judged = [_judge_file(path, cases) for path in files]
    for path, outcomes in zip(files, judged, strict=True):
        print(f"{path}  ({len(outcomes)} questions)")
        for category, label, test in MEASURES:
            hits = [test(outcome) for (name, _), outcome in outcomes.items() if name == category]
            if hits:
                low, high = wilson(sum(hits), len(hits))
                share = 100 * sum(hits) / len(hits)
                print(f"  {category:14} {label:16} {share:5.1f} %  [{low:.1f}, {high:.1f}]  n={len(hits)}")
    for path, outcomes in zip(files[1:], judged[1:], strict=True):
        print(f"{files[0]} against {path}, on the questions of both")
        _compare(judged[0], outcomes)


Outcomes = dict[tuple[str, str], Outcome]
MEASURES: list[tuple[str, str, Callable[[Outcome], bool]]] = [
    ("multiple", "right tool", lambda outcome: outcome.right_tool),
    ("multiple", "arguments", lambda outcome: outcome.right_arguments),
    ("simple_python", "right tool", lambda outcome: outcome.right_tool),
    ("simple_python", "arguments", lambda outcome: outcome.right_arguments),
    ("irrelevance", "false positives", lambda outcome: outcome.called),
]


def _judge_file(path: Path, cases: dict[tuple[str, str], Case]) -> Outcomes:
    rows = ((row["category"], row["id"], row["text"]) for row in _rows(path))
    return {(name, id_): judge(cases[name, id_], text) for name, id_, text in rows if (name, id_) in cases}


def _compare(first: Outcomes, second: Outcomes) -> None:
    for category, label, test in MEASURES:
        pairs = [(test(first[key]), test(second[key])) for key in first if key in second and key[0] == category]
        if pairs:
            only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
            p = sign_test(only_first, only_second)
            print(f"  {category:14} {label:16} only first {only_first}, only second {only_second}, p={p:.2f}")


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, in per cent."""
    share, spread = hits / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def sign_test(a: int, b: int) -> float:
    """Two-sided exact probability of discordant counts at least this uneven if neither model were better."""
    tail = sum(math.comb(a + b, k) for k in range(min(a, b) + 1))
    return min(1.0, 2.0 * tail / 2 ** (a + b))


if __name__ == "__main__":
    main()
