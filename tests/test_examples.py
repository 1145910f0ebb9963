"""Every example runs: two as a user would run them, the rest on a model that is loaded already.

With WHOLE_SUITES=1 all are run as a user would, and the slow one with them.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_agent import LocalRuntime

EXAMPLES = Path(__file__).parent.parent / "examples"
SHOWN = {
    "quickstart.py": ["get_current_weather(", "search(", "calculator(", "990", "[final_answer]"],
    "replay.py": ["[broken off after calculator said 144]", "144", "repeats its log", "step 1, the prompt:", "terse"],
    "typed_answer.py": ["result=1603.0", "sure of its first step: Confidence("],
    "streaming.py": ["[calling calculator with {'expression': '37*43+12'}]", "[observed '1603'", "1603"],
    "smolagents_agents.py": ["The answer is 1603", "calculator {'expression': '37*43+12'}"],
    "smolagents_code_agent.py": ['CodeAgent wrote: {"thought": ', '"code": ', "and failed: "],
    "transformers_agents_2023.py": ["answer = image_captioner(image)", "result: a red picture of 64 by 48 pixels"],
    "langchain_agent.py": ["get_current_weather({'location': 'Oslo'})", "degrees=18)"],
    "langchain_retrieval.py": ["330"],
    "langgraph_steps.py": ["search({'query': 'height of the Eiffel Tower'})", "tool: 990", "ai: 3 times", "Everest"],
}
NEEDS = {
    "smolagents_agents.py": "smolagents",
    "smolagents_code_agent.py": "smolagents",
    "transformers_agents_2023.py": "PIL",
    "langchain_agent.py": "langchain",
    "langchain_retrieval.py": "langchain_core",
    "langgraph_steps.py": "langgraph",
}
SLOW = {"smolagents_code_agent.py"}
ALONE = {
    "quickstart.py",
    "replay.py",
}  # in a process of their own: the first steps of a user, and one that is broken off
WHOLE = bool(os.environ.get("WHOLE_SUITES"))


def test_every_example_is_listed() -> None:
    assert {f.name for f in EXAMPLES.glob("*.py")} == set(SHOWN)
    assert set(NEEDS) | SLOW | ALONE <= set(SHOWN)


@pytest.mark.parametrize("name", [name for name in SHOWN if WHOLE or name not in SLOW])
def test_example(
    name: str, embedded: LocalRuntime, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    if WHOLE or name in ALONE:
        said = run(name)
    else:
        monkeypatch.setattr("qwen_agent.llm.local.load_runtime", lambda model, **options: embedded)
        monkeypatch.setattr(sys, "argv", [name])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        said = capsys.readouterr().out
    for part in SHOWN[name]:
        assert part in said


def run(name: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
