"""Seal-Tools: ``test_in_domain`` and ``test_out_domain``, the questions for one call, with the tools of ``tool``.

Upstream offers what a retriever finds; here the right tool stands among four others, drawn at random with the
question's id as the seed, since many of the 4,076 tools do the same and a retriever would find those. In the
categories "removed" the right tool is left out and a fifth other one stands for it: no call is right.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cases import Case, Function, plain_gold, read_schema

from qwen_agent.tools.coercion import coerce

from .files import find, rows

CATEGORIES = ("in_domain", "out_domain", "in_domain_removed", "out_domain_removed")
_OTHERS = 4
_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}


def categories(folder: Path) -> Sequence[str]:
    return CATEGORIES


def files(folder: Path, category: str) -> Sequence[str]:
    return (f"test_{category.removesuffix('_removed')}", "tool")


def load(folder: Path, category: str) -> Iterator[Case]:
    questions, tools = files(folder, category)
    offered = {row["api_name"]: _function(row) for row in rows(find(folder, tools))}
    for row in rows(find(folder, questions)):
        if len(row["calling"]) == 1:
            yield _case(category, row, offered)


def _case(category: str, row: Mapping[str, Any], offered: Mapping[str, Function]) -> Case:
    (call,) = row["calling"]
    right = offered[call["api"]]
    chance = random.Random(row["id"])
    removed = category.endswith("_removed")
    others = chance.sample([name for name in sorted(offered) if name != right.name], _OTHERS + removed)
    functions = [offered[name] for name in others] + ([] if removed else [right])
    chance.shuffle(functions)
    # the data write many numbers as strings
    arguments = coerce(call["parameters"], right.parameters)
    gold = None if removed else plain_gold(right.name, arguments)
    return Case(category, row["id"], row["query"], tuple(functions), gold)


def _function(row: Mapping[str, Any]) -> Function:
    schema = read_schema({"properties": row["parameters"], "required": row["required"]}, _TYPES)
    return Function(row["api_name"], row["api_description"], schema)
