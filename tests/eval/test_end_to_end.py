"""The end-to-end set: its reference answers pass with real tools, and answers that are not right do not."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import end_to_end
import pytest
from final_answers import numbers_in, right

from qwen_agent import GenerationConfig

TASKS = end_to_end.load()


@pytest.fixture(scope="module")
def tools() -> dict[str, Any]:
    return end_to_end.toolbox()


def as_written(task: end_to_end.Task) -> list[str]:
    """What a model that makes the reference calls would write."""
    steps = [
        f"Thought: I should use the {name} API.\nAction: {name}\nAction Input: {json.dumps(arguments)}\nObservation:"
        for name, arguments in task.reference["calls"]
    ]
    return [*steps, f"Thought: I now know the final answer.\nFinal Answer: {task.reference['answer']}"]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id)
def test_the_reference_is_right_with_real_tools(task: end_to_end.Task, tools: dict[str, Any], scripted: Any) -> None:
    row = end_to_end.run_one(task, scripted(*as_written(task)), tools, GenerationConfig())
    assert len(row["steps"]) == len(task.reference["calls"])
    assert all(step["ok"] for step in row["steps"]), row["steps"]
    assert end_to_end.is_right(task, row), row
    said = " ".join(step["observation"] for step in row["steps"])
    if task.kind != "none":  # what is asked for can be found, even by a tool that says little
        assert right({"words": task.check.get("words", [])}, said, "", ())
        assert right({**task.check, "words": []}, said, said, ())


def test_the_set_is_what_it_says() -> None:
    assert {kind: sum(task.kind == kind for task in TASKS) for kind in end_to_end.KINDS} == {
        "one": 60,
        "several": 30,
        "none": 30,
    }
    assert len({task.question for task in TASKS}) == len({task.id for task in TASKS}) == 120
    assert all(not task.reference["calls"] for task in TASKS if task.kind == "none")
    assert all(len(task.reference["calls"]) in (2, 3) for task in TASKS if task.kind == "several")
    assert all(name in task.tools for task in TASKS for name, _ in task.reference["calls"])


def test_an_agent_that_says_the_same_to_all_is_seldom_right() -> None:
    for answer in ("I do not know.", "The result is 42.", "Hello! How can I help you?", " "):
        passed = [task.id for task in TASKS if right(task.check, answer, task.question, ())]
        assert len(passed) <= 6, passed


def test_a_call_where_none_is_needed_is_wrong() -> None:
    task = next(task for task in TASKS if task.kind == "none")
    answer = task.reference["answer"]
    assert end_to_end.is_right(task, {"answer": answer, "steps": []})
    assert not end_to_end.is_right(task, {"answer": answer, "steps": [{"observation": ""}]})


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("It is 1,340.5 or -7.", [1340.5, -7.0]),
        ("Mount 8,849 m, 1,2 and 3", [8849.0, 1.0, 2.0, 3.0]),
        ("between 3-5, v1.2.3 and 12.", [3.0, 5.0, 12.0]),
        ("−4 °C, 10% and 2024-01-02", [-4.0, 10.0, 2024.0, 1.0, 2.0]),
        ("no digits: seven", []),
    ],
)
def test_numbers(text: str, numbers: list[float]) -> None:
    assert numbers_in(text) == numbers


@pytest.mark.parametrize(
    ("answer", "good"),
    [
        ("3 times 330 is 990.", True),
        ("990", True),
        ("It is 990.0 metres.", True),
        ("It is 990 or 991.", False),  # 991 comes from nowhere
        ("It is 330.", False),
        ("nine hundred and ninety", False),
        ("It is 1990.", False),
        ("", False),
    ],
)
def test_a_number_is_the_right_one_and_nothing_is_invented(answer: str, good: bool) -> None:
    assert right({"number": 990}, answer, "times 3?", ["The tower is 330 metres tall.", "990"]) is good


def test_words_are_whole_words_in_any_case() -> None:
    check = {"words": [["eight", "8"], ["legs"]], "never": ["no tool"]}
    assert right(check, "A spider has EIGHT legs.", "", ())
    assert not right(check, "A spider has eighty legs.", "", ())
    assert not right(check, "It has 8 legs, but no tool says so.", "", ())
    assert right({"words": [["can't"]]}, "I can’t do that.", "", ())


@pytest.fixture
def log(tmp_path: Path) -> Path:
    about = {"model": "m", "url": "", "max_new_tokens": 256, "set": end_to_end.digest()}
    row = {"error": "", "answer": "x", "stop_reason": "final_answer", "steps": [], "tokens": 1, "seconds": 0.1}
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps({"id": task.id, **row, "about": about}) + "\n" for task in TASKS))
    return path


def arguments(path: Path, **changes: Any) -> Any:
    usual = {"files": [path], "markdown": None, "json": path.with_suffix(".json"), "wrong": False, "partial": False}
    return SimpleNamespace(**(usual | changes))


def test_a_report_of_a_part_says_so(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:50]) + lines[50][:20])  # killed while it wrote the 51st
    with pytest.raises(SystemExit, match="only 50 of 120"):
        end_to_end.report(arguments(log))
    end_to_end.report(arguments(log, partial=True))
    assert "50 of 120 questions, 0 errors" in capsys.readouterr().out


def test_errors_are_counted_apart_and_too_many_fail(log: Path) -> None:
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    rows[0]["error"] = "it timed out"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    end_to_end.report(arguments(log))
    figures = json.loads(log.with_suffix(".json").read_text())
    assert (figures["errors"], figures["all"]["n"]) == (1, 119)
    for row in rows[:5]:
        row["error"] = "it timed out"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit, match="5 questions have no answer"):
        end_to_end.report(arguments(log))


def test_the_log_of_another_run_is_refused(log: Path) -> None:
    with pytest.raises(SystemExit, match="holds another run"):
        list(end_to_end._rows(log, {"model": "other"}))
