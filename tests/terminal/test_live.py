from __future__ import annotations

import pytest

from qwen_agent.terminal.live import folded
from qwen_agent.types import Step, ToolCall, ToolResult

LONG = "长的" * 100


@pytest.mark.parametrize("width", [12, 30, 59, 60, 80, 200])
@pytest.mark.parametrize("thought", ["", "Short.", LONG])
@pytest.mark.parametrize("result", ["144", LONG, "two\nlines\x1b[31m"])
def test_a_folded_step_is_one_line_that_fits(width: int, thought: str, result: str) -> None:
    step = Step(thought, ToolCall("search", {"query": "塔 " * 20, "n": 3}, ""), ToolResult(result, seconds=2.34))
    line = folded(step, width)
    assert line.cell_len <= width
    assert "\n" not in line.plain
    assert "\x1b" not in line.plain


def test_what_fits_is_not_cut() -> None:
    step = Step("I must.", ToolCall("calculator", {"expression": "1+1"}, ""), ToolResult("2"))
    assert folded(step, 80).plain == '✓ I must. calculator(expression="1+1") → 2'
    assert folded(step, 80, ascii_only=True).plain.isascii()


def test_a_failed_call_and_one_that_could_not_be_read() -> None:
    step = Step("", ToolCall("clock", None, "{zone", problem="no JSON"), ToolResult("Error: no JSON", ok=False))
    assert folded(step, 80).plain == "✗ clock({zone) → Error: no JSON"
