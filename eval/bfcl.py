"""Berkeley Function Calling Leaderboard (v4) cases, and what counts as a right first call.

Files are ``BFCL_v4_{category}.json.gz`` with one case a line, and ``possible_answer_BFCL_v4_{category}.json.gz`` with
the accepted values of each argument. A category with "irrelevance" in its name has no right call: any call is a false
positive. Comparison follows the leaderboard's checker where it matters for one call: strings without case, blanks and
punctuation; numbers by value; an argument may be left out only where "" is accepted; no invented arguments.

A parameter is described by its type, description and choices, as the embedded model was trained; ``whole`` schemas
also say what is inside lists and objects.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

CATEGORIES = ("simple_python", "multiple", "live_simple", "live_multiple", "irrelevance", "live_irrelevance")
_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
_IGNORED = re.compile(r"[ ,./\-_*^\"']")
_CALL = re.compile(r"(?:^|\n)Action:\s*(.*?)\s*\nAction Input:\s*(.*)$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Function:
    """A tool as ``qwen_agent.prompt`` describes it to the model; ``parameters`` is a JSON Schema object."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    args_format: Literal["json", "code"] = "json"

    @property
    def name_for_human(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Case:
    """One question. ``gold`` is the right call's name and accepted values per argument; None = no call is right."""

    category: str
    id: str
    question: str
    functions: tuple[Function, ...]
    gold: tuple[str, Mapping[str, Sequence[Any]]] | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a model's first step was worth."""

    called: bool
    right_tool: bool
    right_arguments: bool


def load(folder: Path, category: str, limit: int, *, whole: bool = False) -> list[Case]:
    """The first ``limit`` cases of a category that offer any function."""
    answers = {}
    if (folder / _file("possible_answer_", category)).exists():
        answers = {row["id"]: row["ground_truth"] for row in _lines(folder / _file("possible_answer_", category))}
    rows = (row for row in _lines(folder / _file("", category)) if row["function"])
    return [_case(category, row, answers.get(row["id"]), whole) for row in islice(rows, limit)]


def _file(prefix: str, category: str) -> str:
    return f"{prefix}BFCL_v4_{category}.json.gz"


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def _case(category: str, row: Mapping[str, Any], answer: Sequence[Mapping[str, Any]] | None, whole: bool) -> Case:
    messages = row["question"][0]
    said = [m["content"] for role in ("system", "user") for m in messages if m["role"] == role]
    functions = tuple(_function(function, whole) for function in row["function"])
    gold = next(iter(answer[0].items())) if answer else None
    return Case(category, row["id"], "\n".join(said), functions, gold)


def _function(function: Mapping[str, Any], whole: bool) -> Function:
    schema = _object(function["parameters"], whole)
    return Function(function["name"], function.get("description", "").strip(), schema)


def _object(given: Mapping[str, Any], whole: bool) -> dict[str, Any]:
    properties = {name: _property(entry, whole) for name, entry in given.get("properties", {}).items()}
    return {"type": "object", "properties": properties, "required": given.get("required", [])}


def _property(entry: Mapping[str, Any], whole: bool) -> dict[str, Any]:
    given = entry.get("type", "string")
    kind = _TYPES.get(given, given)
    schema = {"description": entry["description"], "type": kind} if "description" in entry else {"type": kind}
    if choices := entry.get("enum"):
        # the data name the choices of a list's items beside the list
        schema |= {"items": {"enum": choices}} if kind == "array" else {"enum": choices}
    elif whole and kind == "array" and "items" in entry:
        schema["items"] = _property(entry["items"], whole)
    elif whole and kind == "object" and "properties" in entry:
        schema |= _object(entry, whole)
    return schema


def judge(case: Case, text: str) -> Outcome:
    """Compare the first call in a model's text with the gold answer."""
    name, arguments = read_call(text)
    right_tool = case.gold is not None and name == case.gold[0]
    right_arguments = right_tool and case.gold is not None and arguments_match(arguments, case.gold[1])
    return Outcome(name is not None, right_tool, right_arguments)


def read_call(text: str) -> tuple[str | None, Any]:
    """The first call's name and its JSON arguments (None if they are not JSON); (None, None) without a call."""
    found = _CALL.search(text.split("\nObservation:")[0].replace("<|im_end|>", ""))
    if not found:
        return None, None
    try:
        return found[1].strip(), json.loads(found[2].strip())
    except json.JSONDecodeError:
        return found[1].strip(), None


def arguments_match(arguments: Any, gold: Mapping[str, Sequence[Any]]) -> bool:
    """True if every argument has an accepted value, none is invented and only optional ones are missing."""
    if not isinstance(arguments, dict) or not set(arguments) <= set(gold):
        return False
    optional = (name for name, accepted in gold.items() if "" in accepted or None in accepted)
    if set(gold) - set(arguments) - set(optional):
        return False
    return all(any(_plain(value) == _plain(x) for x in gold[name]) for name, value in arguments.items())


def _plain(value: Any) -> Any:
    """A value in the form in which two spellings of it are equal."""
    if isinstance(value, str):
        return _IGNORED.sub("", value).lower()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(float(value))
    if isinstance(value, list):
        return [_plain(x) for x in value]
    if isinstance(value, dict):
        # the gold lists accepted values inside nested objects too
        return {key: _plain(x[0] if isinstance(x, list) and len(x) == 1 else x) for key, x in value.items()}
    return value
