"""The first step of an agent as a question to a model: our prompt, greedy, stopped as soon as the step is decided."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from answers import Question
from cases import Case

from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.grammar import Grammar, step_grammar
from qwen_agent.prompt import DEFAULT_SYSTEM, ReActTemplate, build, chatml, openings
from qwen_agent.types import Prompt

NEW_TOKENS = 240
STOPS = ("Observation:", "Observation\uff1a", "\nFinal Answer:")  # a first step is decided after any; agents stop too
TEMPLATE = ReActTemplate("APIs", ",")  # the embedded model was trained on both nouns; this one is the later official


def question_of(case: Case, grammar: str, limit: int = NEW_TOKENS) -> Question:
    """``grammar`` is one of GRAMMARS, ``limit`` the most tokens that may be written."""
    config = GenerationConfig(
        max_new_tokens=limit,
        stop=STOPS,
        grammar=GRAMMARS[grammar](case) if case.functions else None,
        choices=openings([function.name for function in case.functions], "\n") if case.functions else (),
    )
    return Question(f"{case.category}/{case.id}", prompt_for(case), config, case.category)


def prompt_for(case: Case) -> Prompt:
    if case.given:
        return chatml(case.given, (), DEFAULT_SYSTEM)
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


def questions_of(cases: Iterable[Case], grammar: str, limit: int = NEW_TOKENS) -> list[Question]:
    return [question_of(case, grammar, limit) for case in cases]
