"""The original's rules by hand. A token is a character here, so that the numbers can be worked out: ROUGE-L's F is
2 L / (m + n), L being the length of the longest common subsequence of m and n tokens; blanks are no tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tool_use
from rules import RULES, parse

EVAL = Path(__file__).parents[2] / "eval"
AUGUST, DECEMBER = RULES["qwen-2023-08"], RULES["qwen-2023-12"]


def step(action: str, written: str, before: str = "Thought: t\n") -> str:
    return f"{before}Action: {action}\nAction Input: {written}\nObservation: "


# text, right text, selection in August and December, tool input in August and December
HAND_WORKED = {
    # {"城市":"北京"} has 11 characters, 9 of which are also in {"城市":"上海"}: 18 / 22
    "a Chinese value that is wrong": (
        step("查询", '{"城市": "上海"}'),
        step("查询", '{"城市": "北京"}'),
        (True, True),
        (18 / 22, 18 / 22),
    ),
    "a Chinese value that is right, as an escape": (
        step("查询", '{"城市": "\\u5317\\u4eac"}'),
        step("查询", '{"城市": "北京"}'),
        (True, True),
        (1.0, 1.0),
    ),
    "the order of keys": (step("f", '{"b": 1, "a": 2}'), step("F", '{"a": 2, "b": 1}'), (True, True), (1.0, 1.0)),
    "JSON5": (step("f", "{a: 'x',}"), step("f", '{"a": "x"}'), (True, True), (1.0, 1.0)),
    # no JSON5. August: ```json{"a":1}``` has 3 + 4 + 7 + 3 = 17 characters, {"a":1} 7, all common: 14 / 24
    "a code fence": (step("f", '```json\n{"a": 1}\n```'), step("f", '{"a": 1}'), (True, True), (14 / 24, 0.0)),
    # the first name; the input reaches to the observation: {"x":1}Action:bActionInput:{"x":2} is 7 + 8 + 12 + 7 = 34
    # characters, and 7 of them are the right ones: 14 / 41
    "two actions": (
        'Thought: t\nAction: a\nAction Input: {"x": 1}\nAction: b\nAction Input: {"x": 2}\nObservation: ',
        step("a", '{"x": 1}'),
        (True, True),
        (14 / 41, 0.0),
    ),
    # no marker. -1 + 13 = 12 characters are cut off the front: ionInput：{"x":1} is 3 + 5 + 1 + 7 = 16: 14 / 23
    "full-width colons": ('Action：a\nAction Input：{"x": 1}', step("a", '{"x": 1}'), (False, False), (14 / 23, 0.0)),
    # the name reaches to the end. As above, "ction:search" is left: 12 characters, of which the colon is common to
    # {"q":1}: 2 / (12 + 7)
    "a missing input": ("Thought: t\nAction: search", step("search", '{"q": 1}'), (True, True), (2 / 19, 0.0)),
    "another tool with the right input": (step("g", '{"a": 1}'), step("f", '{"a": 1}'), (False, False), (1.0, 1.0)),
    # no call. 12 characters less at the front: I do not know. -> Idonotknow. without "Thought: I d": "onotknow." has
    # nothing in common with {"a":1}
    "no call": ("Thought: I do not know.", step("f", '{"a": 1}'), (False, False), (0.0, 0.0)),
    "no blank after the colon": ("Thought: t\nAction:f\nAction Input:{}", step("f", "{}"), (True, False), (1.0, 1.0)),
    "nothing before the action": (step("f", "{}", before=""), step("f", "{}"), (True, False), (1.0, 1.0)),
}


@pytest.mark.parametrize("case", HAND_WORKED.values(), ids=HAND_WORKED)
def test_by_hand(case: tuple[str, str, tuple[bool, bool], tuple[float, float]]) -> None:
    text, right, selected, rouge = case
    assert (AUGUST.selects(text, right), DECEMBER.selects(text, right)) == selected
    found = tuple(rules.input_rouge(text, right, list) for rules in (AUGUST, DECEMBER))
    assert found == pytest.approx(rouge, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "august", "december"),
    [
        ("Thought: t\nAction: f\nAction Input: {}", True, True),
        ("Thought: t\nAction:f", True, False),
        ("Action: f\nAction Input: {}", False, False),  # the line before it is what both look for
        ("Thought: t\nAction：f", False, False),
        ("Final Answer: Action: none", False, False),
    ],
)
def test_false_positives(text: str, august: bool, december: bool) -> None:
    assert (AUGUST.calls(text), DECEMBER.calls(text)) == (august, december)


def test_the_tokens_decide() -> None:
    """rouge-score's own tokenizer drops all but a-z and 0-9, so that 北京 would be 上海: ours must not."""
    one, other = step("查询", '{"城市": "北京"}'), step("查询", '{"城市": "上海"}')
    assert AUGUST.input_rouge(one, other, str.split) == 0.5  # {"城市": is one token of two, the rest the other
    assert AUGUST.input_rouge(one, one, list) == 1.0


def test_parse() -> None:
    assert parse("Thought: a\nAction: f \nAction Input: {} \nObservation: x\nThought: b\nAction: g") == ("f", "{}")


# ---- score: the same from files, without a model --------------------------------------------------------------------

POSITIVE = [
    {"prompt": "p", "response": step("查询", '{"城市": "北京"}'), "gen": [step("查询", '{"城市": "北京"}')]},
    {"prompt": "p", "response": step("f", '{"a": 1}'), "gen": [step("g", '{"a": 1}')]},
    {"prompt": "p", "response": step("f", '{"a": 1}'), "gen": ["Thought: I do not know."]},
    {"prompt": "p", "response": step("f", '{"a": 1}'), "gen": ["Thought: t\nAction:f\nAction Input:{a: 1}"]},
]
NEGATIVE = [
    {"prompt": "p", "response": "Final Answer: no", "gen": ["Thought: t\nFinal Answer: no"]},
    {"prompt": "p", "response": "Final Answer: no", "gen": ["Thought: t\nAction:f"]},
]


@pytest.fixture
def run_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, Any, str]]:
    """Runs the command on these rows; what it ended with ("" if all is well), its report and its output."""

    def run(rules: str, positive: list[Any], negative: list[Any], *more: str) -> tuple[str, Any, str]:
        monkeypatch.setattr(sys, "argv", ["tool_use.py", *command(tmp_path, rules, positive, negative), *more])
        ended = ""
        try:
            tool_use.main()
        except SystemExit as error:
            ended = str(error)
        out = tmp_path / "out.json"
        return ended, json.loads(out.read_text()) if out.exists() else None, capsys.readouterr().out

    return run


def command(folder: Path, rules: str, positive: list[Any], negative: list[Any]) -> list[str]:
    parts = ["score", "--rules", rules, "--json", str(folder / "out.json")]
    for name, rows in {"positive": positive, "negative": negative}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        parts += [f"--{name}", str(folder / f"{name}.jsonl")]
    return parts


def test_score_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('score needs no torch')\n")
    script = [sys.executable, str(EVAL / "tool_use.py")]
    where = {"PYTHONPATH": f"{tmp_path}:{EVAL.parent}", "PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "utf-8"}
    words = command(tmp_path, "qwen-2023-08", POSITIVE, NEGATIVE)
    ended = subprocess.run([*script, *words], capture_output=True, text=True, env=where)
    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "out.json").read_text())["react_positive"]["action_right_rate"] == 0.5


def test_score_has_the_originals_names_and_every_row(run_score: Any) -> None:
    ended, found, said = run_score("qwen-2023-08", POSITIVE, NEGATIVE)
    assert not ended
    # rows 1 and 4 name the right tool; the inputs are right in 1, 2 and 4, and 3 has no token in common
    assert found["react_positive"] == {"action_right_rate": 0.5, "action_input_rouge": 0.75}
    assert found["react_negative"] == {"bad_rate": 0.5}
    assert [row["action_right"] for row in found["rows"]] == [True, False, False, True, False, False]
    assert [row["bad"] for row in found["rows"]] == [True, True, False, True, False, True]
    assert [row["action_input_rouge"] for row in found["rows"][:4]] == [1.0, 1.0, 0.0, 1.0]
    assert found["tokenizer"].startswith("embedded model")
    assert "react_positive.action_right_rate: 0.5000" in said


def test_score_by_the_rules_of_december(run_score: Any) -> None:
    ended, found, _ = run_score("qwen-2023-12", POSITIVE, NEGATIVE)
    assert not ended
    assert found["react_positive"]["action_right_rate"] == 0.25
    assert found["react_negative"]["bad_rate"] == 0.0


def test_score_counts_empty_rows_apart_and_fails_if_there_are_many(run_score: Any) -> None:
    empty = {"prompt": "p", "response": step("f", "{}"), "gen": [" "]}
    ended, found, _ = run_score("qwen-2023-08", [*POSITIVE, empty], NEGATIVE)
    assert "1 of 5 answers are missing" in ended
    assert found["counts"]["positive"] == {"n": 5, "errors": 1}
    assert found["react_positive"]["action_right_rate"] == 0.5
    assert run_score("qwen-2023-08", [*POSITIVE, empty], NEGATIVE, "--max-errors", "0.2")[0] == ""


@pytest.mark.parametrize("row", [{"prompt": "p"}, {"prompt": "p", "response": "r", "gen": "text"}])
def test_score_names_the_row_that_it_cannot_read(run_score: Any, row: dict[str, Any]) -> None:
    ended, _, _ = run_score("qwen-2023-08", [*POSITIVE, row], NEGATIVE)
    assert "positive.jsonl, row 5" in ended
