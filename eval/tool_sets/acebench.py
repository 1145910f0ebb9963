"""ACEBench (English): ``en_data_{category}`` and ``en_answer_{category}``; first steps only.

In the special categories the right tool is not offered, or the question lacks an argument or has a wrong one: no call
is right. Upstream asks there for fixed sentences and looks for them; they are not asked for here, so only false
positives are counted. A conversation is given whole, as upstream does, with the speakers' names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cases import Case, Function, plain_gold, read_schema

from .files import find, rows

_NAMES = {
    "single_function": "normal_single_turn_single_function",
    "similar_api": "normal_similar_api",
    "incomplete": "special_incomplete",
    "error_param": "special_error_param",
    "irrelevant": "special_irrelevant",
}
CATEGORIES = tuple(_NAMES)
_TYPES = {"dict": "object", "float": "number", "int": "integer", "bool": "boolean", "list": "array", "any": "string"}


def categories(folder: Path) -> Sequence[str]:
    return CATEGORIES


def files(folder: Path, category: str) -> Sequence[str]:
    name = _NAMES[category]
    return (f"en_data_{name}", f"en_answer_{name}") if name.startswith("normal") else (f"en_data_{name}",)


def load(folder: Path, category: str) -> Iterator[Case]:
    questions, *answers = files(folder, category)
    right = {row["id"]: row["ground_truth"] for stem in answers for row in rows(find(folder, stem))}
    for row in rows(find(folder, questions)):
        answer = right.get(row["id"])
        gold = plain_gold(*next(iter(answer.items()))) if answer else None
        yield Case(category, row["id"], _question(row), tuple(map(_function, row["function"])), gold)


def _question(row: Mapping[str, Any]) -> str:
    said: str = row["question"].strip()
    one_turn = "\nuser:" not in said and "\nsystem:" not in said
    said = said.removeprefix("user:").strip() if one_turn else said
    return f"{row['time']}\n{said}" if row.get("time") else said


def _function(function: Mapping[str, Any]) -> Function:
    return Function(function["name"], function.get("description", ""), read_schema(function["parameters"], _TYPES))
