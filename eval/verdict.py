"""What a first step was worth: is there a call, is it well-formed, is it right, and if not, what is wrong with it?

Well-formed is asked twice. Strictly: the call as it stands, plain JSON, the exact name, no coercion. Repaired: the call
as an agent and its tools read it. Right is asked of the call as it stands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema
from cases import Case, Gold

from qwen_agent.arguments import read_arguments
from qwen_agent.errors import ToolError
from qwen_agent.llm.grammar import closed
from qwen_agent.parser import StepParser
from qwen_agent.tools.schema import read_by_schema

RIGHT = "right"
MISTAKES = (
    "cut off",
    "no call",
    "unknown tool",
    "wrong tool",
    "bad JSON",
    "missing argument",
    "extra argument",
    "wrong type",
    "wrong value",
)
_CALL = re.compile(r"(?:^|\n)Action:\s*(.*?)\s*\nAction Input:\s*(.*)$", re.DOTALL)
_ATTEMPT = re.compile(r"^Action:", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """``called``: an agent finds a call. ``attempt``: a line begins with "Action:", whatever follows.

    ``parses``: the arguments are a JSON object. ``listed``: the name is offered. ``fits``: the arguments fit the named
    tool's schema, which knows no others. ``right_tool``, ``right_arguments`` (accepted by the set's rules) and
    ``exact_arguments`` are False where no call is right. ``outcome`` is "right" or the first of MISTAKES; where no call
    is right, "right" or "needless call".
    """

    called: bool
    attempt: bool
    parses: bool
    listed: bool
    fits: bool
    repaired_parses: bool
    repaired_listed: bool
    repaired_fits: bool
    right_tool: bool
    right_arguments: bool
    exact_arguments: bool
    outcome: str

    @property
    def valid_call(self) -> bool:
        """A parsable call of a listed tool."""
        return self.parses and self.listed


def verdict(case: Case, text: str, cut: bool) -> Verdict:
    """``cut``: the output ended at the token limit, so an agent mends nothing in it."""
    parser = StepParser()
    parser.feed(text)
    _, parsed = parser.finish()
    name, arguments = read_call(text)
    schema = _schema(case, name)
    called = parsed.action is not None
    gold = case.gold
    right_tool = gold is not None and name == gold.name
    known = isinstance(arguments, dict) and gold is not None and gold.example is not None
    accepted = right_tool and known and gold is not None and gold.accepts(arguments)
    return Verdict(
        called,
        _ATTEMPT.search(text) is not None,
        isinstance(arguments, dict),
        schema is not None,
        schema is not None and _fits(schema, arguments),
        *_repaired(case, parsed.action, parsed.action_input, cut),
        right_tool,
        accepted,
        accepted and gold is not None and gold.exact(arguments),
        _outcome(gold, called, name, schema, arguments, accepted, cut),
    )


def read_call(text: str) -> tuple[str | None, Any]:
    """The first call's name and its JSON arguments (None if they are not JSON); (None, None) without a call."""
    found = _CALL.search(text.split("\nObservation:")[0].replace("<|im_end|>", ""))
    if not found:
        return None, None
    try:
        return found[1].strip(), json.loads(found[2].strip())
    except (ValueError, RecursionError):
        return found[1].strip(), None


def _outcome(
    gold: Gold | None,
    called: bool,
    name: str | None,
    schema: Mapping[str, Any] | None,
    arguments: Any,
    accepted: bool,
    cut: bool,
) -> str:
    if gold is None:
        return "needless call" if called else RIGHT
    if accepted:
        return RIGHT
    if cut:
        return "cut off"
    if not called:
        return "no call"
    if name is None or schema is None:
        return "unknown tool"
    if name != gold.name:
        return "wrong tool"
    if not isinstance(arguments, dict):
        return "bad JSON"
    return RIGHT if gold.example is None else _mistaken(gold, schema, arguments)


def _mistaken(gold: Gold, schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    if (gold.known - gold.optional) - set(arguments) or set(schema.get("required", ())) - set(arguments):
        return "missing argument"
    if set(arguments) - gold.known:
        return "extra argument"
    wrong = jsonschema.Draft202012Validator(schema).iter_errors(arguments)
    return "wrong type" if any(error.validator == "type" for error in wrong) else "wrong value"


def _repaired(case: Case, name: str | None, raw: str, cut: bool) -> tuple[bool, bool, bool]:
    if name is None:
        return False, False, False
    schema = _schema(case, name)
    found = read_arguments(raw, schema or {})
    values = None if cut and found.repairs else found.values
    return values is not None, schema is not None, schema is not None and _taken(schema, values)


def _schema(case: Case, name: str | None) -> Mapping[str, Any] | None:
    return next((function.parameters for function in case.functions if function.name == name), None)


def _fits(schema: Mapping[str, Any], arguments: Any) -> bool:
    return isinstance(arguments, dict) and jsonschema.Draft202012Validator(closed(schema)).is_valid(arguments)


def _taken(schema: Mapping[str, Any], values: Mapping[str, Any] | None) -> bool:
    """Whether a tool with this schema would take the arguments."""
    if values is None:
        return False
    try:
        read_by_schema(schema, values)
    except ToolError:
        return False
    return True
