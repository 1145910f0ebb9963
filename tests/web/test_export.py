"""A conversation as a file."""

from __future__ import annotations

import json

from qwen_agent.errors import ContextOverflow
from qwen_agent.types import Artifact, StopReason, Usage
from qwen_agent.web.export import as_json, as_markdown
from qwen_agent.web.texts import CHINESE, ENGLISH
from qwen_agent.web.turn import ShownStep, Turn

FILE = Artifact("0" * 12, "a.csv", "text/plain", 3, "/somewhere/private/a.csv")
TURNS = [
    Turn(
        "1+1?",
        (FILE,),
        "[file: a.csv]",
        [ShownStep("I add.\nReally.", "calculator", '{"expression": "1+1"}', observation="2", phase="done")],
        "It is **2**.",
        end=StopReason.FINAL_ANSWER,
        usage=Usage(10, 0, 5),
    ),
    Turn("long", problem=ContextOverflow(9000, 8192)),
]


def test_markdown_holds_everything() -> None:
    text = as_markdown(TURNS, "embedded", ENGLISH)
    for part in ("## You\n\n1+1?", "a.csv", "> I add.\n> Really.", "**calculator**", '"1+1"', "It is **2**.", "9000"):
        assert part in text
    assert "private" not in text
    assert "## 您" in as_markdown(TURNS, "embedded", CHINESE)


def test_json_holds_everything() -> None:
    found = json.loads(as_json(TURNS, "embedded"))
    first, second = found["turns"]
    assert found["model"] == "embedded"
    assert first["steps"][0]["tool"] == "calculator"
    assert first["steps"][0]["observation"] == "2"
    assert (first["answer"], first["stop_reason"], first["error"]) == ("It is **2**.", "final_answer", None)
    assert first["usage"] == {"prompt_tokens": 10, "generated_tokens": 5}
    assert (second["stop_reason"], "9000" in second["error"]) == (None, True)
    assert "private" not in json.dumps(found)
    assert "secret" not in as_json([Turn("x", problem=RuntimeError("a secret"))], "embedded")
