"""What the grammar of a step costs and saves per token: on the embedded model, and alone on Qwen's vocabulary.

    python eval/grammar_cost.py
    python eval/grammar_cost.py --vocabulary tests/data/qwen.tiktoken.xz

Greedy, one call of a tool, the same text every time: without a grammar; with it, where tokens that must follow are
appended unasked; and with it, sampling those one by one too. Rounds take turns; figures are medians. What the grammar
takes is the mask of allowed tokens, putting it on the logits ("apply") and taking the chosen token ("take"): in µs per
token of the text, and together as a share of the decoding.
"""

from __future__ import annotations

import argparse
import lzma
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from qwen_agent import load_runtime, tool
from qwen_agent.llm import sampling
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.grammar import Compiler, Grammar, Matcher, step_grammar
from qwen_agent.llm.local import LocalRuntime
from qwen_agent.llm.runtime import Chunk, text_of
from qwen_agent.llm.tokenizer import QwenTokenizer
from qwen_agent.prompt import build
from qwen_agent.types import IM_END, Prompt


@tool
def weather(city: str, days: int = 1) -> str:
    """The weather forecast for a city.

    Args:
        city: name of the city
        days: number of days to forecast
    """
    return "sunny"


@tool
def convert(amount: float, source: str, target: str) -> str:
    """Converts an amount of money from one currency to another.

    Args:
        amount: how much
        source: code of the currency to convert from
        target: code of the currency to convert to
    """
    return "1"


TOOLS = (weather, convert)
QUESTION = "What will the weather be like in Oslo for the next 3 days?"
STOP = "Observation:"
GRAMMAR_PARTS = ((Matcher, "allowed"), (sampling, "keep_only"), (Matcher, "advance"))


@dataclass(slots=True)
class Rounds:
    """What one way of decoding gave, round by round: seconds a token, and of these in each part of the grammar."""

    seconds: list[float] = field(default_factory=list)
    parts: list[tuple[float, ...]] = field(default_factory=list)
    passes: int = 0
    tokens: int = 0
    text: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="embedded, a folder or a hub id")
    parser.add_argument("--repeat", type=int, default=5, help="rounds")
    parser.add_argument("--vocabulary", type=Path, help="qwen.tiktoken(.xz): measure the grammar alone on it, no model")
    args = parser.parse_args()
    if args.vocabulary is not None:
        print(*alone(args.vocabulary, args.repeat), sep="\n")
    else:
        print(*table(measure(load_runtime(args.model), args.repeat)), sep="\n")


# ---- with a model


def measure(runtime: LocalRuntime, repeat: int) -> dict[str, Rounds]:
    prompt = build(QUESTION, tools=TOOLS)
    free = GenerationConfig(max_new_tokens=120, stop=(STOP,))
    held = replace(free, grammar=step_grammar(TOOLS))
    ways: dict[str, tuple[GenerationConfig, Callable[[], AbstractContextManager[None]]]] = {
        "no grammar": (free, nullcontext),
        "grammar, forced tokens appended": (held, nullcontext),
        "grammar, forced tokens sampled": (held, one_by_one),
    }
    _generate(runtime, prompt, replace(held, max_new_tokens=1))  # reads the prompt and compiles the grammar
    rounds = {name: Rounds() for name in ways}
    for _ in range(repeat):
        for name, (config, circumstances) in ways.items():
            with circumstances(), clocked() as spent:
                last = _generate(runtime, prompt, config)
            _note(rounds[name], last, spent)
    return rounds


def _generate(runtime: LocalRuntime, prompt: Prompt, config: GenerationConfig) -> Chunk:
    *_, last = runtime.stream(prompt, config)
    return last


def _note(rounds: Rounds, last: Chunk, spent: dict[str, list[float]]) -> None:
    tokens = last.usage.generated_tokens
    rounds.seconds.append(last.usage.decode_seconds / tokens)
    rounds.parts.append(tuple(sum(times) / tokens for times in spent.values()))
    rounds.passes = len(spent["allowed"]) or tokens
    rounds.tokens, rounds.text = tokens, text_of(last.output)


@contextmanager
def one_by_one() -> Iterator[None]:
    """Forced tokens are not taken unasked: each is sampled, with a mask that allows only it."""

    def advance(matcher: Any, token: int) -> list[int]:
        assert matcher._matcher.consume_token(token)
        return []

    with patch.object(Matcher, "advance", advance):
        yield


@contextmanager
def clocked() -> Iterator[dict[str, list[float]]]:
    """The seconds of each call of the grammar's parts, by name."""
    spent: dict[str, list[float]] = {name: [] for _, name in GRAMMAR_PARTS}

    def timed(function: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            started = time.perf_counter()
            result = function(*args)
            times.append(time.perf_counter() - started)
            return result

        return call

    patches = [patch.object(owner, name, timed(getattr(owner, name), spent[name])) for owner, name in GRAMMAR_PARTS]
    with patches[0], patches[1], patches[2]:
        yield spent


def table(rounds: dict[str, Rounds]) -> Iterator[str]:
    yield "| | tokens | chosen | ms a token | speed | mask | apply | take | share |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    base = statistics.median(rounds["no grammar"].seconds)
    for name, row in rounds.items():
        seconds = statistics.median(row.seconds)
        parts = [statistics.median(times) for times in zip(*row.parts, strict=True)]
        micros = (f"{1e6 * part:.0f}" for part in parts)
        cells = (name, row.tokens, row.passes, f"{1000 * seconds:.2f}", f"{base / seconds:.2f}x", *micros)
        yield f"| {' | '.join(map(str, cells))} | {100 * sum(parts) / seconds:.1f} % |"
    texts = {row.text for row in rounds.values()}
    yield f"\n{'The same text' if len(texts) == 1 else 'NOT the same text'}: {', '.join(map(repr, texts))}"


# ---- without a model


def alone(path: Path, repeat: int) -> Iterator[str]:
    """The grammar over a vocabulary, along a text that is known."""
    tokenizer = _tokenizer(path)
    call = 'Action: weather\nAction Input: {"city": "Oslo", "days": 3}\nObservation:'
    text = f"Thought: I should use the weather API.\n{call}"
    started = time.perf_counter()
    compiler = Compiler(tokenizer, [tokenizer.specials[IM_END.name]])
    built = time.perf_counter() - started
    grammar = step_grammar(TOOLS)
    started = time.perf_counter()
    compiler.matcher(grammar)
    compiled = time.perf_counter() - started
    walks = [_walk(compiler, grammar, tokenizer.encode(text)) for _ in range(repeat + 1)][1:]
    yield f"{tokenizer.size} tokens; tables built in {built:.2f} s, the grammar compiled in {1000 * compiled:.1f} ms.\n"
    yield "| µs | median | slowest |"
    yield "| --- | --- | --- |"
    for at, name in enumerate(("the set of allowed tokens", "taking a token, with what must follow")):
        times = [1e6 * seconds for walk in walks for seconds in walk[at]]
        yield f"| {name} | {statistics.median(times):.0f} | {max(times):.0f} |"
    chosen = len(walks[0][0])
    yield f"\n{chosen} of {len(tokenizer.encode(text))} tokens were chosen, the others forced."


def _tokenizer(path: Path) -> QwenTokenizer:
    if path.suffix != ".xz":
        return QwenTokenizer(path)
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "qwen.tiktoken"
        plain.write_bytes(lzma.decompress(path.read_bytes()))
        return QwenTokenizer(plain)


def _walk(compiler: Compiler, grammar: Grammar, ids: list[int]) -> tuple[list[float], list[float]]:
    matcher = compiler.matcher(grammar)
    masks, advances = [], []
    at = 0
    while at < len(ids):
        started = time.perf_counter()
        allowed = matcher.allowed(10**6, 10**6)
        middle = time.perf_counter()
        assert allowed[ids[at] // 8] >> ids[at] % 8 & 1, f"token {ids[at]} is not allowed"
        at += 1 + len(matcher.advance(ids[at]))
        masks.append(middle - started)
        advances.append(time.perf_counter() - middle)
    return masks, advances


if __name__ == "__main__":
    main()
