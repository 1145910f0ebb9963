"""The own code tasks (code_tasks.jsonl): questions, the files that go with them, and exact checks of what came out.

A check is of one of these kinds:
- number: the last number in the answer is ``value``, within ``tolerance`` (default 0);
- word: ``value`` stands in the answer as a whole, and none of the ``others`` does, whatever the case;
- file: a file ``name`` was made whose text is ``value``, but for blanks at its ends;
- picture: a PNG file was made. Whether it shows what was asked for would be for a model that sees: it is not judged.

Each task has a ``solution``, code that prints the right answer, so that the checks can be checked.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_agent.errors import InputError

TASKS = Path(__file__).with_name("code_tasks.jsonl")
_NUMBER = re.compile(r"[-\u2212]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")


@dataclass(frozen=True, slots=True)
class CodeTask:
    id: str
    group: str
    lang: str
    question: str
    files: Mapping[str, str]
    check: Mapping[str, Any]
    solution: str


def load(path: Path = TASKS) -> list[CodeTask]:
    """The tasks in a file of JSON Lines. Raises InputError."""
    try:
        return [CodeTask(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is no file of code tasks: {type(error).__name__}: {error}") from None


def is_right(check: Mapping[str, Any], answer: str, made: Mapping[str, bytes]) -> bool:
    """Whether the answer, or the files that were made, by name, pass a check."""
    match check["kind"]:
        case "number":
            return is_number(answer, check["value"], check.get("tolerance", 0))
        case "word":
            return _stands_in(check["value"], answer) and not any(
                _stands_in(x, answer) for x in check.get("others", ())
            )
        case "file":
            text = made.get(check["name"], b"").decode("utf-8", "replace")
            return text.replace("\r\n", "\n").strip() == check["value"].strip()
        case "picture":
            return any(data.startswith(b"\x89PNG\r\n\x1a\n") for data in made.values())
    raise InputError(f"there is no check {check['kind']!r}: use number, word, file or picture")


def is_number(text: str, value: float, tolerance: float) -> bool:
    """Whether the last number in the text is the value."""
    found = _NUMBER.findall(text)
    if not found:
        return False
    last = found[-1].replace(",", "").replace("\u2212", "-")
    if isinstance(value, int) and last.lstrip("-").isdecimal():
        return abs(int(last) - value) <= tolerance  # a float would be too short for it
    # What was rounded is as right as it says.
    return math.isclose(float(last), value, rel_tol=1e-12, abs_tol=tolerance + 1e-9)


def _stands_in(word: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None
