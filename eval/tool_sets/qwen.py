"""The original's own files: ``*react_positive.jsonl`` and ``*react_negative.jsonl``, with ``prompt`` and ``response``.

A prompt is a whole ReAct prompt and is given to the model as it is; the tools are read out of it. A response is the
right ReAct text. The files are not public; whoever has them puts one version of them into a folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cases import Case, Function, Gold, plain_gold
from rules import parse

from qwen_agent.errors import InputError
from qwen_agent.tools.plugins import from_qwen_plugin

from .files import ENDINGS, find, rows

CATEGORIES = ("positive", "negative")
_TOOL = re.compile(r"^(\S+): Call this tool to interact with the .* API\. What is the .* API useful for\? ", re.M)
_PARAMETERS = re.compile(r" ?Parameters: ")
_QUESTION = re.compile(r"\nQuestion: ")


def categories(folder: Path) -> Sequence[str]:
    return CATEGORIES


def files(folder: Path, category: str) -> Sequence[str]:
    names = {path.name.removesuffix(ending) for ending in ENDINGS for path in folder.glob(f"*react_{category}{ending}")}
    if len(names) > 1:
        raise SystemExit(f"{folder} holds {' and '.join(sorted(names))}: put each version into a folder of its own")
    return tuple(names) or (f"react_{category}",)


def load(folder: Path, category: str) -> Iterator[Case]:
    (stem,) = files(folder, category)
    path = find(folder, stem)
    for number, row in enumerate(rows(path), 1):
        if not isinstance(row.get("prompt"), str) or not isinstance(row.get("response"), str):
            raise SystemExit(f"{path}, row {number}: needs 'prompt' and 'response', both strings")
        prompt, response = row["prompt"], row["response"]
        gold = _gold(response) if category == "positive" else None
        question = _QUESTION.split(prompt)[-1]
        yield Case(category, f"{category}_{number}", question, _functions(prompt), gold, prompt, response)


def _gold(response: str) -> Gold:
    action, raw = parse(response)
    try:
        arguments = json.loads(raw)
    except ValueError:
        arguments = None
    return plain_gold(action, arguments) if isinstance(arguments, dict) else Gold(action)


def _functions(prompt: str) -> tuple[Function, ...]:
    """The tools that a prompt describes; one whose parameters cannot be read has none that are known."""
    found = list(_TOOL.finditer(prompt))
    ends = [match.start() for match in found[1:]] + [len(prompt)]
    return tuple(_function(match[1], prompt[match.end() : end]) for match, end in zip(found, ends, strict=True))


def _function(name: str, text: str) -> Function:
    described, *rest = _PARAMETERS.split(text, maxsplit=1)
    return Function(name, described.strip(), _schema(rest[0] if rest else ""))


def _schema(text: str) -> Mapping[str, Any]:
    try:
        listed, _ = json.JSONDecoder().raw_decode(text)
        if isinstance(listed, dict):
            return listed
        return from_qwen_plugin({"name_for_model": "tool", "parameters": listed}, lambda **_: "").parameters
    except (ValueError, InputError):
        return {"type": "object"}
