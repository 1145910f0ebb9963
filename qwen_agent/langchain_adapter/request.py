"""LangChain's options of a call, in the terms of `qwen_agent.dialogue`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage

from qwen_agent.dialogue.request import AnswerForm, Choice, Request, make_request, toolbox_of
from qwen_agent.errors import InputError
from qwen_agent.langchain_adapter.conversation import said
from qwen_agent.tools.base import Tool

_CHOICES: Mapping[Any, str] = {None: "auto", False: "none", True: "required", "any": "required"}


def asked_for(messages: Sequence[BaseMessage], tools: Any, tool_choice: Any, response_format: Any) -> Request:
    """What LangChain asks. Raises InputError for what cannot be asked."""
    offered = toolbox_of(tools or ())
    choice = _choice(chosen(tool_choice, offered))
    return make_request(said(messages), offered, choice, _answer_form(response_format))


def chosen(asked: Any, tools: Mapping[str, Tool]) -> str:
    """ "auto", "none", "required" or a tool's name, from the spellings of several providers."""
    if isinstance(asked, Mapping):  # {"type": "function", "function": {"name": ...}}, {"type": "tool", "name": ...}
        asked = asked.get("function", asked).get("name", asked.get("type"))
    choice = _CHOICES.get(asked, asked)
    choices = ("auto", "none", "any", "required", *tools)
    if choice not in choices or (choice == "required" and not tools):
        raise InputError(f"tool_choice={asked!r} cannot be used: choose from {', '.join(choices)}, and bind tools")
    return str(choice)


def _choice(name: str) -> Choice:
    if name == "auto":
        return Choice()
    if name == "none":
        return Choice("none")
    return Choice("required", None if name == "required" else (name,))


def _answer_form(form: Any) -> AnswerForm | None:
    """What the answer must fit, from OpenAI's ``response_format``."""
    kind = form.get("type") if isinstance(form, Mapping) else form
    if kind in (None, "text"):
        return None
    if kind == "json_schema" and isinstance(form.get("json_schema", {}).get("schema"), Mapping):
        return AnswerForm(form["json_schema"]["schema"], shown=True)
    if kind == "json_object":
        return AnswerForm(form.get("schema", {"type": "object"}), shown=False)
    raise InputError(f"response_format={form!r} cannot be used: its type must be text, json_object or json_schema")
