"""A conversation, tools and choices -> what is asked of the runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qwen_agent.dialogue.turns import Said, Turn, conversation, history
from qwen_agent.errors import InputError
from qwen_agent.llm.grammar import Grammar, call_grammar, json_grammar, step_grammar
from qwen_agent.llm.runtime import text_of
from qwen_agent.loop.writing import OBSERVATION
from qwen_agent.parser import Part
from qwen_agent.prompt import ask_for_json, awaits_thought, build, force_answer
from qwen_agent.tools.base import Tool
from qwen_agent.tools.plugins import from_openai_function
from qwen_agent.types import Prompt

_AFTER_ANSWER = (*OBSERVATION, "\nThought:", "\nAction")


@dataclass(frozen=True, slots=True)
class Choice:
    """Whether a tool is called: the model decides ("auto"), none, or one must be. ``among``: only these; None: any.

    All tools are described in any case, so that the prompt does not depend on the choice.
    """

    mode: Literal["auto", "none", "required"] = "auto"
    among: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """The JSON Schema that an answer must fit, and whether the prompt is to show it."""

    schema: Mapping[str, Any]
    shown: bool


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, what may be written after it, where that stops; ``first`` is the part of a step it begins with.

    ``tools`` are those that may be called.
    """

    prompt: Prompt
    tools: Mapping[str, Tool]
    grammar: Grammar | None
    stops: tuple[str, ...]
    first: Part


def make_request(
    messages: Sequence[Said], tools: Mapping[str, Tool], choice: Choice = Choice(), form: AnswerForm | None = None
) -> Request:
    """What the messages ask, in the project's own format. Raises InputError for what cannot be asked."""
    allowed = _allowed(tools, choice)
    system, turns = conversation(messages)
    last = turns[-1]
    _check_last(last)
    prompt = build(
        last.asked,
        tools=list(tools.values()),
        history=history(turns[:-1]),
        system=ask_for_json(system, form.schema) if form and form.shown else system,
    )
    prompt += last.said
    schema = form.schema if form else None
    if (tools and choice.mode == "none") or (last.said and not tools):
        answer = json_grammar(schema, lead=" ") if schema else None
        return Request(prompt + force_answer(text_of(prompt)), {}, answer, _AFTER_ANSWER, "final_answer")
    if not tools:
        return Request(prompt, {}, json_grammar(schema) if schema else None, (), "final_answer")
    offered = allowed.values()
    grammar = step_grammar(offered, schema) if choice.mode == "auto" else call_grammar(offered)
    return Request(prompt, allowed, grammar, OBSERVATION, "thought")


def toolbox_of(specs: Sequence[Mapping[str, Any]]) -> dict[str, Tool]:
    """Tools to be described and called, but run by others; of two with one name, the last.

    ``specs`` are OpenAI's function JSON. Raises InputError for what cannot be a tool.
    """
    tools = [from_openai_function(spec, lambda **arguments: None) for spec in specs]
    return {tool.name: tool for tool in tools}


def _allowed(tools: Mapping[str, Tool], choice: Choice) -> dict[str, Tool]:
    """The tools that may be called."""
    if choice.mode == "required" and not tools:
        raise InputError("tool_choice demands a call, but there are no tools: give tools")
    unknown = [name for name in choice.among or () if name not in tools]
    if unknown:
        raise InputError(f"tool_choice names {unknown[0]!r}, but the tools are: {', '.join(tools) or 'none'}")
    return {name: tool for name, tool in tools.items() if choice.among is None or name in choice.among}


def _check_last(turn: Turn) -> None:
    if turn.said and not awaits_thought(text_of(turn.said)):
        raise InputError("the last message is the model's own: end with the user's, or with the tools' results")
    if not turn.said and not turn.asked.strip():
        raise InputError("the question is empty: end with a message of the user that has text")
