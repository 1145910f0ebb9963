"""Asking our own runtime for the first step to each BFCL question: one prompt at a time, greedy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from bfcl import Case

from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.grammar import Grammar, step_grammar
from qwen_agent.llm.runtime import Chunk, Runtime, text_of
from qwen_agent.prompt import ReActTemplate, build, openings
from qwen_agent.types import Prompt

NEW_TOKENS = 240
STOPS = ("Observation:", "Observation\uff1a", "\nFinal Answer:")  # a first step is decided after any; agents stop too
TEMPLATE = ReActTemplate("APIs", ",")  # the embedded model was trained on both nouns; this one is the later official


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's first step. ``weights`` are the probabilities of answering and of calling each function, if known."""

    case: Case
    text: str
    tokens: int
    cut: bool
    weights: tuple[float, ...] = ()


def prompt_for(case: Case) -> Prompt:
    return build(case.question, tools=case.functions, template=TEMPLATE)


def names_grammar(case: Case) -> Grammar:
    """The name after "Action:" is one of the functions; everything else is free."""
    names = " | ".join(json.dumps(f" {function.name}\n") for function in case.functions)
    return Grammar(
        "start: to_action name ANY | ANY\n"
        "to_action[lazy]: /(?s:(.*\\n)?Action:)/\n"
        f"name: {names}\n"
        "ANY: /(?s:.*)/\n"
    )  # fmt: skip


GRAMMARS: dict[str, Callable[[Case], Grammar | None]] = {
    "step": lambda case: step_grammar(case.functions),
    "names": names_grammar,
    "none": lambda case: None,
}


def ask(runtime: Runtime, cases: Iterable[Case], grammar: str) -> Iterator[Answer]:
    """The runtime's answers, in order. ``grammar`` is one of GRAMMARS."""
    for case in cases:
        config = GenerationConfig(
            max_new_tokens=NEW_TOKENS,
            stop=STOPS,
            grammar=GRAMMARS[grammar](case),
            choices=openings([function.name for function in case.functions], "\n"),
        )
        weights: tuple[float, ...] = ()
        last = Chunk()
        for last in runtime.stream(prompt_for(case), config):
            weights = last.weights or weights
        yield Answer(case, text_of(last.output), last.usage.generated_tokens, last.finish == "length", weights)
