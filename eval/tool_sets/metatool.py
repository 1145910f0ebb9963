"""MetaTool's files for choosing one tool, and others of that form: objects with ``query``, ``action_prompt``, ``tool``.

A category is a file's name without its ending (``Task2-Subtask3``, say). The tools are those that the prompt lists
("1. tool name: X, tool description: Y"). Where the named tool is not among them (subtask 3), or is "None", no call is
right. The data say nothing about arguments: each tool is given one, ``query``, and only the choice is judged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from cases import Case, Function, Gold

from .files import ENDINGS, find, rows

_TOOL = re.compile(r"^\d+\. tool name: (.+?), tool description: (.*?)$", re.MULTILINE)
_QUERY = {
    "type": "object",
    "properties": {"query": {"type": "string", "description": "what the tool is asked for"}},
    "required": ["query"],
}


def categories(folder: Path) -> Sequence[str]:
    names = (path.name.removesuffix(ending) for ending in ENDINGS for path in folder.glob(f"*{ending}"))
    return sorted(name for name in names if "." not in name)


def files(folder: Path, category: str) -> Sequence[str]:
    return (category,)


def load(folder: Path, category: str) -> Iterator[Case]:
    """The cases of a file. Raises SystemExit for one whose rows list no tools (Task1) or want several (subtask 4)."""
    path = find(folder, category)
    for number, row in enumerate(rows(path), 1):
        functions = tuple(
            Function(name, description.strip("[]'\""), _QUERY)
            for name, description in _TOOL.findall(row.get("action_prompt", ""))
        )
        if not functions or "query" not in row:
            raise SystemExit(f"{path}, row {number}: no query with a list of tools in action_prompt")
        wanted = row.get("tool")
        if isinstance(wanted, list):
            raise SystemExit(f"{path}, row {number}: {len(wanted)} tools are wanted; only the choice of one is judged")
        gold = next((Gold(function.name) for function in functions if function.name == wanted), None)
        yield Case(category, f"{category}_{number}", row["query"], functions, gold)
