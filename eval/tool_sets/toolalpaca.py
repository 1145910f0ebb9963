"""ToolAlpaca: ``eval_real`` and ``eval_simulated``, the instructions whose right answer is one call.

Left out are right calls that are no JSON (placeholders for values nobody knows) and, of ``eval_real``, those of
functions that the API does not list. An argument whose right value is "" may be left out. Upstream lets GPT-4 judge.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cases import Case, Function, Gold, plain_gold

from .files import find, rows

CATEGORIES = ("real", "simulated")
_SIGNATURE = re.compile(r"\s*Parameters: (\{.*\})\s*\nOutput:.*", re.DOTALL)
_PARAMETER = re.compile(
    r"(?:Required\. )?(?P<kind>\w+)(?P<inside>\[.*?\])?\.?\s*(?:One of: \[(?P<choices>.*?)\]\.?\s*)?", re.DOTALL
)


def categories(folder: Path) -> Sequence[str]:
    return CATEGORIES


def files(folder: Path, category: str) -> Sequence[str]:
    return (f"eval_{category}",)


def load(folder: Path, category: str) -> Iterator[Case]:
    for api in rows(find(folder, f"eval_{category}")):
        listed = {name: text for name, text in api["Function_Description"].items() if name != "components"}
        functions = tuple(_function(name, text) for name, text in listed.items())
        for number, (instruction, steps) in enumerate(zip(api["Instructions"], api["Golden_Answers"], strict=True)):
            gold = _gold(steps[0]) if len(steps) == 1 and steps[0]["Action"] in listed else None
            if gold is not None:
                yield Case(category, f"{api['Name']}_{number}", instruction, functions, gold)


def _gold(step: Mapping[str, Any]) -> Gold | None:
    try:
        arguments = json.loads(step["Action_Input"])
    except ValueError:
        return None
    optional = [name for name, value in arguments.items() if value == ""]
    return plain_gold(step["Action"], arguments, optional)


def _function(name: str, text: str) -> Function:
    found = _SIGNATURE.search(text)
    if found is None:
        raise SystemExit(f"the function {name!r} has no 'Parameters: {{...}}' in its description")
    described = json.loads(found[1])
    properties = {parameter: _schema(entry) for parameter, entry in described.items()}
    required = [parameter for parameter, entry in described.items() if entry.startswith("Required.")]
    description = text[: found.start()].strip()
    return Function(name, description, {"type": "object", "properties": properties, "required": required})


def _schema(entry: str) -> dict[str, Any]:
    found = _PARAMETER.match(entry)
    if found is None:
        return {"description": entry, "type": "string"}
    schema: dict[str, Any] = {"description": entry[found.end() :].strip(), "type": found["kind"].lower()}
    if found["choices"]:
        schema["enum"] = [choice.strip() for choice in found["choices"].split(",")]
    inside = (found["inside"] or "").strip("[]").lower()
    if inside in ("string", "integer", "number", "boolean"):
        schema["items"] = {"type": inside}
    return schema
