"""Every example runs, as a user would run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SHOWN = {
    "quickstart.py": ["get_current_weather(", "search(", "calculator(", "990", "[final_answer]"],
    "replay.py": ["[broken off after calculator said 144]", "144", "repeats its log", "step 1, the prompt:", "terse"],
    "typed_answer.py": ["result=1603.0", "sure of its first step: Confidence("],
    "streaming.py": ["[calling calculator with {'expression': '37*43+12'}]", "[observed '1603'", "1603"],
}


def test_every_example_is_listed() -> None:
    assert {f.name for f in EXAMPLES.glob("*.py")} == set(SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_example(name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    for part in SHOWN[name]:
        assert part in done.stdout
