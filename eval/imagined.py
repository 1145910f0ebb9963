"""Agents that need no model: the floors that a score stands on, and the ceiling, which tells whether it is sound."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from cases import Case

_NO_CALL = "Thought: I now know the final answer."
Imagined = Callable[[Case], str]


def oracle(case: Case) -> str:
    """Does what the data call right. Where a set's own rules refuse its own answers, it is below 100 %."""
    if case.gold is None:
        return _NO_CALL
    return _call(case.gold.name, case.gold.example or {})


def never_calls(case: Case) -> str:
    return _NO_CALL


def calls_first(case: Case) -> str:
    """Calls the first tool on the list, without arguments."""
    return _call(case.functions[0].name if case.functions else "none", {})


def wrong_tool(case: Case) -> str:
    """The right arguments for another tool than the right one, if there is another; calls where no call is right."""
    if case.gold is None:
        return calls_first(case)
    others = [function.name for function in case.functions if function.name != case.gold.name]
    return _call(others[0] if others else "another", case.gold.example or {})


def wrong_argument(case: Case) -> str:
    """The right tool with one argument too many; calls where no call is right."""
    if case.gold is None:
        return calls_first(case)
    return _call(case.gold.name, {**(case.gold.example or {}), "invented": 1})


FLOORS: Mapping[str, Imagined] = {"calls the first tool": calls_first, "never calls": never_calls}
CEILING: Mapping[str, Imagined] = {"oracle": oracle}


def right_text(case: Case) -> str:
    """The right text of a case with a right call, in the original's form."""
    return case.response or f"{oracle(case)}\nObservation:"


def _call(name: str, arguments: Mapping[str, Any]) -> str:
    written = json.dumps(arguments, ensure_ascii=False)
    return f"Thought: I should use the {name} API.\nAction: {name}\nAction Input: {written}"
