"""The code interpreter benchmark: our own tasks, their checks, and the original's file and loop."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import code_interpreter
import code_tasks
import model_options
import original_code_tasks as original
import pytest
from code_tasks import is_right

from qwen_agent.errors import InputError
from qwen_agent.limits import Limits
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import Chunk, text_of
from qwen_agent.tools.sandbox import open_sandbox
from qwen_agent.tools.sandbox.bubblewrap import require
from qwen_agent.types import IM_END, IM_START, Prompt, Text, Usage


def has_sandbox() -> bool:
    try:
        require()
    except Exception:
        return False
    return True


needs_sandbox = pytest.mark.skipif(not has_sandbox(), reason="there is no sandbox here")
TASKS = code_tasks.load()


def call(code: str) -> str:
    return f"Thought: I run it.\nAction: code_interpreter\nAction Input: {json.dumps({'code': code})}\n"


class Writer:
    """A runtime that writes what a function makes of the prompt's text."""

    name, window = "writer", 100_000

    def __init__(self, write: Callable[[str], str]) -> None:
        self.asked = 0
        self.prompts: list[Prompt] = []
        self._write = write

    def stream(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        self.asked += 1
        self.prompts.append(prompt)
        text = self._write(text_of(prompt))
        yield Chunk(text, finish="stop", output=(Text(text),), usage=Usage(1, 0, 7))

    def score(self, prompt: Prompt, choices: Any) -> list[float]:
        raise NotImplementedError

    def count_tokens(self, prompt: Prompt) -> int:
        return 1


def turn(prompt: str) -> str:
    """What was written so far in answer to the prompt."""
    return prompt.rpartition("assistant\n")[2]


def solved(prompt: str) -> str:
    """The solution of the task in a prompt, and then what it printed as the answer."""
    if "Observation:" in turn(prompt):
        return f" I know.\nFinal Answer: {prompt.rpartition('Observation:')[2].rpartition('Thought:')[0].strip()}"
    [task] = [task for task in TASKS if task.question in prompt]
    return call(task.solution)


# ---- our own tasks


def test_there_are_enough_tasks_of_each_kind() -> None:
    assert len(TASKS) >= 30 and len({task.id for task in TASKS}) == len(TASKS)
    assert {task.group for task in TASKS} == {"math", "data", "text", "dates"}
    assert {task.check["kind"] for task in TASKS} == {"number", "word", "file", "picture"}
    assert sum(task.lang == "zh" for task in TASKS) >= 4


@needs_sandbox
def test_each_solution_passes_its_check_and_no_other_number_does(tmp_path: Path) -> None:
    sandbox = open_sandbox(tmp_path)
    try:
        for task in TASKS:
            if task.check["kind"] == "picture":  # drawn by the test of the whole run
                continue
            for name, text in task.files.items():
                (tmp_path / name).write_text(text, encoding="utf-8")
            execution = sandbox.run(task.solution)
            made = {name: (tmp_path / name).read_bytes() for name in execution.files}
            assert is_right(task.check, execution.stdout, made), (task.id, execution)
            assert not is_right(task.check, "I do not know.", {}), task.id
            if task.check["kind"] == "number":
                assert not is_right(task.check, f"It is {task.check['value'] + 1}.", {}), task.id
    finally:
        sandbox.close()


NUMBER = {"kind": "number", "value": 1940.61, "tolerance": 0.01}
BIG = {"kind": "number", "value": 2880067194370816120}
WORD = {"kind": "word", "value": "Sunday", "others": ["Monday"]}


@pytest.mark.parametrize(
    ("check", "answer", "right"),
    [
        (NUMBER, "After 6 years it is $1,940.61.", True),
        (NUMBER, "1940.62", True),
        (NUMBER, "1940.63", False),
        (NUMBER, "1940.61 after 6 years", False),  # the last number counts
        (NUMBER, "", False),
        (BIG, "2880067194370816120", True),
        (BIG, "2880067194370816121", False),
        (BIG, "2.88e18", False),
        ({"kind": "number", "value": -34}, "−34", True),  # a minus of typesetters
        ({"kind": "number", "value": -34}, "34", False),
        ({"kind": "number", "value": 71071}, "总和是71071。", True),
        (WORD, "It was a sunday.", True),
        (WORD, "Sundays", False),
        (WORD, "Sunday or Monday", False),
    ],
)
def test_answers_are_checked(check: dict[str, Any], answer: str, right: bool) -> None:
    assert is_right(check, answer, {}) is right


def test_files_are_checked() -> None:
    check = {"kind": "file", "name": "a.txt", "value": "x\ny"}
    assert is_right(check, "", {"a.txt": b"x\r\ny\n"}) and not is_right(check, "", {"b.txt": b"x\ny"})
    assert is_right({"kind": "picture"}, "", {"p": b"\x89PNG\r\n\x1a\n..."})
    assert not is_right({"kind": "picture"}, "", {"p.png": b"no picture"})
    with pytest.raises(InputError, match="there is no check 'x'"):
        is_right({"kind": "x"}, "", {})


def run(monkeypatch: pytest.MonkeyPatch, runtime: Writer, *options: object) -> None:
    monkeypatch.setattr(model_options, "load_once", lambda model: runtime)
    monkeypatch.setattr(sys, "argv", ["code_interpreter.py", *map(str, options)])
    code_interpreter.main()


CHOSEN = ("math-primes", "data-best", "data-write", "data-picture", "date-zh")


@needs_sandbox
def test_our_agent_does_the_tasks_and_a_run_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks, log, report = tmp_path / "tasks.jsonl", tmp_path / "log.jsonl", tmp_path / "report.json"
    lines = code_tasks.TASKS.read_text(encoding="utf-8").splitlines(keepends=True)
    tasks.write_text("".join(line for line in lines if json.loads(line)["id"] in CHOSEN), encoding="utf-8")
    options = ("run", "m", "--data", tasks, "--out", log, "--json", report)
    run(monkeypatch, writer := Writer(solved), *options)
    told = json.loads(report.read_text())
    assert writer.asked == 10
    assert told["groups"]["all"]["right"]["hits"] == told["groups"]["all"]["executable"]["hits"] == 5
    assert told["groups"]["all"]["pictures"] == 1
    assert "| all | 5/5 = 100.0 %" in capsys.readouterr().out
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:4]))
    run(monkeypatch, again := Writer(solved), *options)
    assert again.asked == 6 and json.loads(report.read_text()) == told


@needs_sandbox
def test_code_that_fails_is_not_executable() -> None:
    [task] = [task for task in TASKS if task.id == "math-gcd"]
    runtime = Writer(lambda prompt: "Final Answer: 9" if "Observation:" in turn(prompt) else call("1 / 0"))
    row = code_interpreter.solve(task, runtime, GenerationConfig(), Limits(steps=2))
    assert row["code"] and not row["executable"] and row["right"]
    lazy = Writer(lambda prompt: "Thought: I know.\nFinal Answer: 9")
    row = code_interpreter.solve(task, lazy, GenerationConfig(), Limits(steps=2))
    assert not row["code"] and not row["executable"] and row["right"]


# ---- the original's file and loop

PLOT = "open('plot.png', 'wb').write(b'a picture')"
EASY = (
    "Draw a.csv.<|im_end|>\n<|im_start|>assistant\nThought: I read it.\nAction: code_interpreter\n"
    "Action Input:\n```py\nrows = open('a.csv').read()\n```\nObservation: ok\nThought:"
)
ROWS = [
    {"query": "What is 6*7?", "lang": "en", "tags": "all_ci,math", "input_file_path": []},
    {"query": "画 a.csv。", "lang": "zh", "tags": "all_ci,visualization", "input_file_path": ["upload_file/a.csv"]},
    {"query": EASY, "lang": "en", "tags": "all_ci,visualization", "input_file_path": ["a.csv"]},
    {"query": "Clean a.csv", "lang": "en", "tags": "all_ci,general", "input_file_path": ["a.csv"]},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "eval_code_interpreter_v1.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    (tmp_path / "a.csv").write_text("x\n1\n")
    return path


def fenced(code: str) -> str:
    return f"Thought: I run it.\nAction: code_interpreter\nAction Input:\n```py\n{code}\n```\n"


def test_items_are_read_with_their_groups(file: Path, tmp_path: Path) -> None:
    items = original.load(file, tmp_path)
    assert [item.group for item in items] == ["math", "visualization-hard", "visualization-easy", "general"]
    assert items[1].files == ("a.csv",)
    with pytest.raises(InputError, match=r"row-2 of eval_code_interpreter_v1.jsonl needs 'a.csv', which is not in"):
        original.load(file, tmp_path / "elsewhere")
    file.write_text('{"query": "x"}')
    with pytest.raises(InputError, match=r"is no eval_code_interpreter_v1.jsonl: KeyError: 'tags'"):
        original.load(file, tmp_path)


def test_the_prompt_names_uploads_and_turns_are_turns(file: Path, tmp_path: Path) -> None:
    _, zh, easy, _ = original.load(file, tmp_path)
    assert "Question: [上传文件a.csv]画 a.csv。" in text_of(original.prompt_for(zh))
    prompt = original.prompt_for(easy)
    assert "代码解释器" in text_of(prompt) and "<|im_" not in text_of(prompt)
    assert (prompt.count(IM_START), prompt.count(IM_END)) == (4, 3)


def test_code_is_taken_from_every_wrapping() -> None:
    for wrapped in ("```py\nx = 1\n```", "`x = 1`", '{"code": "x = 1"}', "x = 1"):
        assert original.codes_in(f"Thought: t\nAction: code_interpreter\nAction Input: {wrapped}\n") == ["x = 1"]
    two = fenced("a = 1") + "Observation: \nThought: more\n" + fenced("b = 2").partition("\n")[2]
    assert original.codes_in(two) == ["a = 1", "b = 2"]
    assert original.codes_in("Thought: t\nFinal Answer: 3") == []
    assert original.codes_in(EASY) == ["rows = open('a.csv').read()"]


@needs_sandbox
def test_the_loop_and_the_rate_of_the_original(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(prompt: str) -> str:
        if "6*7" in prompt:
            return fenced("print(6*7)")  # once only: there is one execution for math
        if "Clean" in prompt:
            return fenced("import no_such_package")
        if "画" in prompt:
            return fenced("1 / 0") if "Observation:" in turn(prompt) else fenced("print(open('a.csv').read())")
        return "Final Answer: done" if "Observation:" in turn(prompt) else fenced(f"{PLOT}\nprint(rows)")

    report, log = tmp_path / "report.json", tmp_path / "log.jsonl"
    options = ("--original", file, "--uploads", tmp_path)
    run(monkeypatch, writer := Writer(write), "run", "m", *options, "--out", log, "--json", report)
    told = json.loads(report.read_text())
    rows = {row["group"]: row for row in told["rows"]}
    assert [len(rows[group]["codes"]) for group in rows] == [1, 2, 1, 1]
    assert rows["math"]["executable"] and rows["math"]["text"].count("stdout:\n\n```\n42\n```") == 1
    assert rows["visualization-hard"]["executable"]  # only its first code is judged
    assert "ZeroDivisionError" in rows["visualization-hard"]["text"]
    assert rows["visualization-easy"]["executable"] and rows["visualization-easy"]["pictures"] == 1
    assert not rows["general"]["executable"] and "no_such_package" in rows["general"]["problem"]
    assert writer.asked == 6
    assert "| all | 4/4" in capsys.readouterr().out
    run(monkeypatch, none := Writer(write), "report", log, *options, "--json", report)
    assert none.asked == 0 and json.loads(report.read_text()) == told
