"""The first-step scorer on rows of our own in the leaderboard's format."""

from __future__ import annotations

import gzip
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

WEATHER = {
    "name": "weather.get",
    "description": "Weather of a city.",
    "parameters": {
        "type": "dict",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}


@pytest.fixture(scope="module")
def bfcl() -> ModuleType:
    sys.path.insert(0, str(Path(__file__).parent.parent / "eval"))
    try:
        return importlib.import_module("bfcl")
    finally:
        sys.path.pop(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    row = {"id": "m0", "question": [[{"role": "user", "content": "Weather in Oslo?"}]], "function": [WEATHER]}
    gold = {"id": "m0", "ground_truth": [{"weather.get": {"city": ["Oslo", "oslo, norway"], "days": ["", 1]}}]}
    for name, content in (("BFCL_v4_multiple", row), ("possible_answer_BFCL_v4_multiple", gold)):
        with gzip.open(tmp_path / f"{name}.json.gz", "wt") as file:
            file.write(json.dumps(content) + "\n")
    return tmp_path


def call(name: str, arguments: str) -> str:
    return f"Thought: t\nAction: {name}\nAction Input: {arguments}\nObservation:"


@pytest.mark.parametrize(
    ("text", "called", "tool", "arguments"),
    [
        (call("weather.get", '{"city": "Oslo"}'), True, True, True),
        (call("weather.get", '{"city": "OSLO Norway"}'), True, True, True),
        (call("weather.get", '{"city": "Oslo", "days": 1}'), True, True, True),
        (call("weather.get", '{"city": "Oslo", "days": 2}'), True, True, False),
        (call("weather.get", '{"city": "Oslo", "unit": "C"}'), True, True, False),
        (call("weather.get", "not json"), True, True, False),
        (call("weather", '{"city": "Oslo"}'), True, False, False),
        ("Thought: no\nFinal Answer: I cannot.", False, False, False),
    ],
)
def test_what_counts(bfcl: ModuleType, folder: Path, text: str, called: bool, tool: bool, arguments: bool) -> None:
    (case,) = bfcl.load(folder, "multiple", 10)
    outcome = bfcl.judge(case, text)
    assert (outcome.called, outcome.right_tool, outcome.right_arguments) == (called, tool, arguments)


def test_a_case_is_described_in_our_schema(bfcl: ModuleType, folder: Path) -> None:
    (case,) = bfcl.load(folder, "multiple", 10)
    assert case.functions[0].parameters["type"] == "object"
    assert case.question == "Weather in Oslo?"
