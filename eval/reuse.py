"""What a step of a long run really reads: tokens of the prompt, of them cached, and beyond the new observation.

    python eval/reuse.py                            50 steps of the embedded model, then as many in a small window
    python eval/reuse.py --windows 1500 --steps 20

The model, its tokenizer and its KV cache are real; only its choices are scripted, by a grammar that allows one text a
step. "More" is what was read on top of the observation: the tokens that the step before wrote last. In the small window
old observations become stubs now and then, and what follows the first stub has to be read again; a run that is full of
stubs ends.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from qwen_agent import Agent
from qwen_agent.limits import Limits
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.grammar import Grammar
from qwen_agent.llm.local import LocalRuntime, load_runtime
from qwen_agent.llm.runtime import Chunk
from qwen_agent.types import Compacted, Finished, ModelWrote, Prompt, StopReason, ToolFinished, Usage

SHOWN = (1, 2, 5, 10, 20, 30, 40, 50)


@dataclass(frozen=True, slots=True)
class Row:
    """One step: what it read, the observation before it, and how many observations became stubs just before it."""

    usage: Usage
    observed: int
    stubs: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="embedded, a folder or a hub id")
    parser.add_argument("--steps", type=int, default=50, help="steps of each run")
    parser.add_argument("--windows", type=int, nargs="+", default=[8192, 4000], help="tokens; one run in each")
    args = parser.parse_args()
    loaded = load_runtime(args.model)
    for window in args.windows:
        runtime = LocalRuntime(loaded.model, loaded.tokenizer)  # with empty caches
        runtime.window = min(window, loaded.window)
        rows, reason = measure(runtime, args.steps)
        print(f"\nWindow {window}: {len(rows)} steps, ended by {reason.value}\n")
        print(*table(rows), "", summary(rows), sep="\n", flush=True)


def measure(runtime: LocalRuntime, steps: int) -> tuple[list[Row], StopReason]:
    """Run ``steps`` steps; the last row is that of the answer's step."""
    agent = Agent(Forced(runtime, steps), [notes], limits=Limits(steps=steps + 1, tokens=10**6))
    rows: list[Row] = []
    observed = stubs = 0
    for event in agent.stream("What do the notes say?"):
        if isinstance(event, Compacted):
            stubs = len(event.steps)
        elif isinstance(event, ModelWrote):
            rows.append(Row(event.usage, observed, stubs))
            stubs = 0
        elif isinstance(event, ToolFinished):
            observed = event.tokens
        elif isinstance(event, Finished):
            return rows, event.result.stop_reason
    raise AssertionError("a run always ends with Finished")


def notes(page: int) -> str:
    """Reads a page of the notes.

    Args:
        page: the number of the page
    """
    return " ".join(f"On page {page}, note {note} says that item {37 * page + note} is due." for note in range(1, 6))


class Forced:
    """The runtime, made to write the scripted steps."""

    def __init__(self, runtime: LocalRuntime, steps: int) -> None:
        self.name, self.window = runtime.name, runtime.window
        self._runtime = runtime
        self._grammars = iter([*map(_call, range(1, steps + 1)), _literal(" I now know the final answer.")])

    def stream(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        return self._runtime.stream(prompt, replace(config, grammar=next(self._grammars)))

    def score(self, prompt: Prompt, choices: Sequence[Prompt]) -> list[float]:
        return self._runtime.score(prompt, choices)

    def count_tokens(self, prompt: Prompt) -> int:
        return self._runtime.count_tokens(prompt)


def _call(page: int) -> Grammar:
    # The brace is chosen, as with a tool's real grammar, so only what follows it is forced and not yet read.
    call = f' I should use the notes API.\nAction: notes\nAction Input: {{"page": {page}'
    return Grammar(f'{_literal(call).lark.strip()} ("}}" | " }}") "\\nObservation:"\n')


def _literal(text: str) -> Grammar:
    return Grammar(f"start: {json.dumps(text)}\n")


def table(rows: Sequence[Row]) -> Iterator[str]:
    shown = [at for at, row in enumerate(rows, 1) if at in SHOWN or row.stubs]
    yield "| step | prompt | cached | read | observation | more | stubs made |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for at in shown:
        row = rows[at - 1]
        usage, more = row.usage, row.usage.prefilled_tokens - row.observed
        cells = (at, usage.prompt_tokens, usage.cached_tokens, usage.prefilled_tokens, row.observed, more, row.stubs)
        yield f"| {' | '.join(map(str, cells))} |"


def summary(rows: Sequence[Row]) -> str:
    usual = [row.usage.prefilled_tokens - row.observed for row in rows[1:] if not row.stubs]
    read = sum(row.usage.prefilled_tokens for row in rows)
    prompts = sum(row.usage.prompt_tokens for row in rows)
    made = [row.stubs for row in rows if row.stubs]
    return (
        f"{read} tokens read of {prompts} in all prompts ({100 * read / prompts:.1f} %). From the second step on, "
        f"{min(usual)} to {max(usual)} more than the observation. Room was made {len(made)} times, {sum(made)} stubs."
    )


if __name__ == "__main__":
    main()
