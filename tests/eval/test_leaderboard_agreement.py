"""Our reading of what BFCL accepts, against the leaderboard's own checker, where `bfcl_eval` is installed.

By hand: pip download --no-deps bfcl-eval==2026.3.23, unzip it into a folder, PYTHONPATH=that folder.
"""

from __future__ import annotations

import copy
import importlib
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tool_sets import bfcl
from tool_sets.files import find, rows

pytest.importorskip("bfcl_eval")

CATEGORIES = ("simple_python", "multiple", "live_simple", "live_multiple")
MUTANTS = 6


class _AnyModel(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        return SimpleNamespace(underscore_to_dot=False)


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    models = ModuleType("bfcl_eval.constants.model_config")
    models.MODEL_CONFIG_MAPPING = _AnyModel()  # type: ignore[attr-defined]  # the real one imports every vendor's SDK
    monkeypatch.setitem(sys.modules, models.__name__, models)
    return importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker").ast_checker


def mutants(example: dict[str, Any], chance: random.Random) -> Iterator[dict[str, Any]]:
    """The arguments, and the same with something changed: right in some ways, wrong in others."""
    yield example
    for _ in range(MUTANTS):
        changed = copy.deepcopy(example)
        if changed:
            key = chance.choice(sorted(changed))
            changed[key] = chance.choice(MUTATIONS)(changed[key])
            if changed[key] is None:
                del changed[key]
        if chance.random() < 0.1:
            changed["invented"] = 1
        yield changed


MUTATIONS: tuple[Callable[[Any], Any], ...] = (
    lambda value: None,
    lambda value: str(value),
    lambda value: [value],
    lambda value: value.upper() + "." if isinstance(value, str) else value,
    lambda value: float(value) if isinstance(value, int) else value,
    lambda value: int(value) if isinstance(value, (float, bool)) else value,
    lambda value: list(reversed(value)) if isinstance(value, list) else value,
    lambda value: value[:-1] if isinstance(value, (list, str)) else value,
    lambda value: value[0] if isinstance(value, list) and value else value,
    lambda value: dict(list(value.items())[:-1]) if isinstance(value, dict) else value,
    lambda value: {**value, "invented": 1} if isinstance(value, dict) else value,
    lambda value: {key: str(item) for key, item in value.items()} if isinstance(value, dict) else value,
    lambda value: "" if isinstance(value, str) else value,
    lambda value: [] if isinstance(value, list) else value,
)


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_same_calls_are_accepted(check: Callable[..., Any], category: str) -> None:
    import bfcl_eval
    from bfcl_eval.constants.enums import Language

    data = Path(bfcl_eval.__file__).parent / "data"
    questions = {row["id"]: row for row in rows(find(data, f"BFCL_v4_{category}"))}
    answers = {row["id"]: row["ground_truth"] for row in rows(find(data / "possible_answer", f"BFCL_v4_{category}"))}
    chance = random.Random(category)
    accepted, agreed, different = 0, 0, []
    for name, row in questions.items():
        case = bfcl._case(category, row, answers[name])
        assert case.gold is not None
        for arguments in mutants(dict(case.gold.example or {}), chance):
            ours = case.gold.accepts(arguments)
            try:
                output = [{case.gold.name: copy.deepcopy(arguments)}]
                theirs = check(row["function"], output, answers[name], Language.PYTHON, category, "any")["valid"]
            except Exception:  # the checker fails on some values of unexpected types: no acceptance
                theirs = False
            accepted, agreed = accepted + theirs, agreed + (ours == theirs)
            if ours != theirs:
                different.append((name, arguments, ours))
    print(f"{category}: {agreed} of {agreed + len(different)} agree, {accepted} accepted")
    assert not different, different[:5]
