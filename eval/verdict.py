"""What a first step was worth: is there a call, is it well-formed, is it right?

Well-formed is asked twice. Strictly: the call as it stands, plain JSON, the exact name, no coercion. Repaired: the call
as an agent and its tools read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema
from bfcl import Case, judge, read_call

from qwen_agent.arguments import read_arguments
from qwen_agent.errors import ToolError
from qwen_agent.llm.grammar import closed
from qwen_agent.parser import StepParser
from qwen_agent.tools.schema import read_by_schema


@dataclass(frozen=True, slots=True)
class Verdict:
    """``called``: an agent finds a call. ``parses``: its arguments are a JSON object. ``listed``: the name is offered.

    ``fits``: the arguments fit the named tool's schema, which knows no others. ``right_tool`` and ``right_arguments``
    are those of `bfcl.judge`, on the call as it stands.
    """

    called: bool
    parses: bool
    listed: bool
    fits: bool
    repaired_parses: bool
    repaired_listed: bool
    repaired_fits: bool
    right_tool: bool
    right_arguments: bool


def verdict(case: Case, text: str, cut: bool) -> Verdict:
    """``cut``: the output ended at the token limit, so an agent mends nothing in it."""
    parser = StepParser()
    parser.feed(text)
    _, parsed = parser.finish()
    right = judge(case, text)
    return Verdict(
        parsed.action is not None,
        *_as_it_stands(case, text),
        *_repaired(case, parsed.action, parsed.action_input, cut),
        right.right_tool,
        right.right_arguments,
    )


def _as_it_stands(case: Case, text: str) -> tuple[bool, bool, bool]:
    name, arguments = read_call(text)
    schema = _schema(case, name)
    parses = isinstance(arguments, dict)
    fits = parses and schema is not None and jsonschema.Draft202012Validator(closed(schema)).is_valid(arguments)
    return parses, schema is not None, fits


def _repaired(case: Case, name: str | None, raw: str, cut: bool) -> tuple[bool, bool, bool]:
    if name is None:
        return False, False, False
    schema = _schema(case, name)
    found = read_arguments(raw, schema or {})
    values = None if cut and found.repairs else found.values
    return values is not None, schema is not None, schema is not None and _accepted(schema, values)


def _schema(case: Case, name: str | None) -> Mapping[str, Any] | None:
    return next((function.parameters for function in case.functions if function.name == name), None)


def _accepted(schema: Mapping[str, Any], values: Mapping[str, Any] | None) -> bool:
    """Whether a tool with this schema would take the arguments."""
    if values is None:
        return False
    try:
        read_by_schema(schema, values)
    except ToolError:
        return False
    return True
