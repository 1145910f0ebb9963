"""Messages, tools and choices of a call -> what is asked of the runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import BaseMessage

from qwen_agent.errors import InputError
from qwen_agent.langchain_adapter.conversation import conversation, history
from qwen_agent.llm.grammar import Grammar, call_grammar, json_grammar, step_grammar
from qwen_agent.llm.runtime import text_of
from qwen_agent.loop.writing import OBSERVATION
from qwen_agent.parser import Part
from qwen_agent.prompt import ask_for_json, awaits_thought, build, force_answer
from qwen_agent.tools.base import Tool
from qwen_agent.tools.plugins import from_openai_function
from qwen_agent.types import Prompt

_AFTER_ANSWER = (*OBSERVATION, "\nThought:", "\nAction")
_CHOICES: Mapping[Any, str] = {None: "auto", False: "none", True: "required", "any": "required"}


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, what may be written after it, where that stops; ``first`` is the part of a step it begins with."""

    prompt: Prompt
    tools: Mapping[str, Tool]
    grammar: Grammar | None
    stops: tuple[str, ...]
    first: Part


def make_request(messages: Sequence[BaseMessage], tools: Any, tool_choice: Any, response_format: Any) -> Request:
    """What LangChain asks, in the project's own format. Raises InputError for what cannot be asked."""
    offered = toolbox_of(tools or ())
    choice = chosen(tool_choice, offered)
    schema, shown = _answer_schema(response_format)
    system, turns = conversation(messages)
    asked, said = turns[-1].asked, turns[-1].said
    if said and not awaits_thought(text_of(said)):
        raise InputError("the last message is the model's own: end with a HumanMessage, or with the tools' results")
    if not said and not asked.strip():
        raise InputError("the question is empty: end with a HumanMessage that has text")
    prompt = build(
        asked,
        tools=list(offered.values()),
        history=history(turns[:-1]),
        system=ask_for_json(system, schema) if schema and shown else system,
    )
    prompt += said
    if (offered and choice == "none") or (said and not offered):
        answer = json_grammar(schema, lead=" ") if schema else None
        return Request(prompt + force_answer(text_of(prompt)), {}, answer, _AFTER_ANSWER, "final_answer")
    if not offered:
        return Request(prompt, {}, json_grammar(schema) if schema else None, (), "final_answer")
    if choice == "auto":
        return Request(prompt, offered, step_grammar(offered.values(), schema), OBSERVATION, "thought")
    callable_now = offered.values() if choice == "required" else [offered[choice]]
    return Request(prompt, offered, call_grammar(callable_now), OBSERVATION, "thought")


def toolbox_of(specs: Sequence[Mapping[str, Any]]) -> dict[str, Tool]:
    """Tools to be described and called, but run by others; of two with one name, the last, as LangChain has it.

    Raises InputError for what cannot be a tool.
    """
    tools = [from_openai_function(spec, lambda **arguments: None) for spec in specs]
    return {tool.name: tool for tool in tools}


def chosen(asked: Any, tools: Mapping[str, Tool]) -> str:
    """ "auto", "none", "required" or a tool's name, from the spellings of several providers."""
    if isinstance(asked, Mapping):  # {"type": "function", "function": {"name": ...}}, {"type": "tool", "name": ...}
        asked = asked.get("function", asked).get("name", asked.get("type"))
    choice = _CHOICES.get(asked, asked)
    choices = ("auto", "none", "any", "required", *tools)
    if choice not in choices or (choice == "required" and not tools):
        raise InputError(f"tool_choice={asked!r} cannot be used: choose from {', '.join(choices)}, and bind tools")
    return str(choice)


def _answer_schema(form: Any) -> tuple[Mapping[str, Any] | None, bool]:
    """The schema that an answer must fit, and whether the prompt is to show it."""
    kind = form.get("type") if isinstance(form, Mapping) else form
    if kind in (None, "text"):
        return None, False
    if kind == "json_schema" and isinstance(form.get("json_schema", {}).get("schema"), Mapping):
        return form["json_schema"]["schema"], True
    if kind == "json_object":
        return form.get("schema", {"type": "object"}), False
    raise InputError(f"response_format={form!r} cannot be used: its type must be text, json_object or json_schema")
