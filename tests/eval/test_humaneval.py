"""HumanEval: what passes in the two jails and what does not, the forms of the prompt, the commands."""

from __future__ import annotations

import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any

import checked_code
import humaneval
import model_options
import pytest
from checked_code import Verdict, _packed, _unpacked
from humaneval import FORMS, Problem, body_in, passes, read

from qwen_agent.errors import InputError
from qwen_agent.tools.sandbox.bubblewrap import require
from qwen_agent.types import IM_START, Text


def has_sandbox() -> bool:
    try:
        require()
    except Exception:
        return False
    return True


needs_sandbox = pytest.mark.skipif(not has_sandbox(), reason="there is no sandbox here")

# Problems of our own, in the form of the data.
SQUARES = Problem(
    "Own/0",
    'from typing import List\n\n\ndef squares(n: int) -> List[int]:\n    """The first n squares, from 1.\n    """\n',
    "squares",
    "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate(0) == []\n"
    "    assert candidate(3) == [1, 4, 9]\n    assert candidate(n=1) == [1]\n",
    "    return [i * i for i in range(1, n + 1)]\n",
)
ROOT = Problem(
    "Own/1",
    "def evaluate(xs: list, x: float):\n    return sum(c * x**i for i, c in enumerate(xs))\n\n\n"
    'def find_root(xs: list):\n    """A root of a line."""\n',
    "find_root",
    # Random, with a function of the prompt, and with the function under its own name.
    "import random\nimport math\n\ndef check(candidate):\n    for _ in range(20):\n"
    "        xs = [random.randint(-9, 9), 7]\n        root = candidate(list(xs))\n"
    "        assert math.fabs(evaluate(xs, root)) < 1e-6\n"
    "        assert abs(candidate(xs) - find_root(xs)) < 1e-6\n",
    "    return -xs[0] / xs[1]\n",
)


@needs_sandbox
@pytest.mark.parametrize("problem", [SQUARES, ROOT])
def test_the_right_completion_passes_and_no_other(problem: Problem) -> None:
    assert passes(problem, problem.canonical_solution) == Verdict(True)
    for wrong in ("", "    pass\n", "    return [1, 4, 9]\n"):
        assert not passes(problem, wrong).passed


HOSTILE = {
    "exits": ("    import os\n    os._exit(0)\n", "died: .* exit status 0"),
    "exits when defined": ("    return []\nimport sys\nsys.exit(0)\n", "it ended before the function was defined"),
    "loops": ("    while True:\n        pass\n", "time limit"),
    "loops and catches": (
        "    try:\n        while True:\n            pass\n    except BaseException:\n        return []\n",
        "time limit",
    ),
    "takes all memory": ("    x = [0]\n    while True:\n        x += x\n", "MemoryError|died|time limit"),
    "is equal to everything": (
        "    class E(list):\n        __eq__ = lambda s, o: True\n        __hash__ = lambda s: 0\n    return E()\n",
        "AssertionError",
    ),
    "says that it passed": ("    print('passed')\n    return 'passed'\n", "AssertionError"),
    "forges the reply": (
        "    import json, os, sys\n"
        "    frame = sys._getframe()\n"
        "    while 'request' not in frame.f_locals:\n"
        "        frame = frame.f_back\n"
        "    reply = {'id': frame.f_locals['request']['id'], 'value': repr('passed'), 'error': '', 'dropped': 0,"
        " 'lost': False}\n"
        "    data = json.dumps(reply).encode()\n"
        "    os.write(frame.f_locals['control'], b'J' + len(data).to_bytes(4, 'big') + data)\n"
        "    import time\n    time.sleep(1)\n",
        "its results cannot be tested",
    ),
    "replaces what calls it": ("    return []\ndef _answered(f, calls):\n    return '[]'\n", "time limit"),
    "replaces json": ("    return []\nimport json\njson.dumps = lambda x: '[[true, true]]'\n", "."),
    "replaces the test": ("    return []\ndef check(candidate):\n    pass\n", "AssertionError"),
    "raises": ("    raise SystemExit(0)\n", "SystemExit"),
    "makes no data": ("    return map(int, [])\n", "AssertionError"),
    "makes too much data": ("    return 'a' * 10**7\n", "more than can be read|died|time limit"),
}  # fmt: skip


@needs_sandbox
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_completion_does_not_pass(name: str) -> None:
    completion, reason = HOSTILE[name]
    verdict = passes(SQUARES, completion, seconds=1.5, memory=256 << 20)
    assert not verdict.passed
    assert re.search(reason, verdict.reason), verdict.reason


@needs_sandbox
def test_what_follows_main_is_not_run_and_arguments_are_copies() -> None:
    completion = f"{SQUARES.canonical_solution}\nif __name__ == '__main__':\n    raise SystemExit(1)\n"
    assert passes(SQUARES, completion).passed
    test = "def check(candidate):\n    xs = [3, 1]\n    assert candidate(xs) == [1, 3]\n    assert xs == [3, 1]\n"
    assert checked_code.judge("def f(xs):\n    xs.sort()\n    return xs\n", "f", test).passed


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 0, -(10**4000), 1.5, float("inf"), "a\ud800", b"\x00", 2j, [], (1, [2, (3,)]), {1, 2}),
        {"a": (1,), 2: {"b"}, None: 1.0},
    ],
)
def test_data_crosses_unchanged(value: Any) -> None:
    crossed = _unpacked(json.loads(json.dumps(_packed(value))))
    assert crossed == value and type(crossed) is type(value)


def test_what_is_no_data_is_equal_to_nothing() -> None:
    assert _unpacked(_packed(range(3))) != _unpacked(_packed(range(3)))


# ---- prompts and completions


def test_base_continues_and_chat_asks() -> None:
    assert FORMS["base"].prompt(SQUARES) == (Text(SQUARES.prompt),)
    chat = FORMS["chat"].prompt(SQUARES)
    assert chat.count(IM_START) == 3
    assert Text(f"Help me fill the following code.\n{SQUARES.prompt}") in chat


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("Sure:\n```python\ndef squares(n):\n    x = 1\n\n    return x\n```\nDone.", "    x = 1\n\n    return x"),
        ("def squares(n):\n    return n\nprint(squares(1))", "    return n"),
        ("def squares(n):\n    a = 1\n\n    return a\n\n\nThis works.", "    a = 1\n\n    return a"),
        ("def other(n):\n    return n", "    return n"),
        ("return n\nx", "    return n\n    x"),
    ],
)
def test_the_body_in_a_chat(text: str, body: str) -> None:
    assert body_in(SQUARES, text) == body


# ---- the commands


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "own.jsonl.gz"
    rows = [{name: getattr(problem, name) for name in Problem.__slots__} for problem in (SQUARES, ROOT)]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return path


def command(monkeypatch: pytest.MonkeyPatch, *options: object) -> None:
    monkeypatch.setattr(sys, "argv", ["humaneval.py", *map(str, options)])
    humaneval.main()


@needs_sandbox
def test_a_model_is_asked_once_and_what_it_wrote_is_tested(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scripted: Any
) -> None:
    log, report = tmp_path / "log.jsonl", tmp_path / "report.json"
    # Questions are asked in the order of their texts; that of ROOT comes first.
    runtime = scripted(f"{ROOT.canonical_solution}\n\n\nprint(1)", "    return []\n\ndef squares")
    monkeypatch.setattr(model_options, "load_once", lambda model: runtime)
    options = ("run", "m", "--data", data, "--form", "base", "--out", log, "--json", report)
    command(monkeypatch, *options)
    told = json.loads(report.read_text())
    assert told["pass@1"]["hits"] == 1 and told["reasons"] == {"AssertionError": 1}
    assert "| **m** | 1/2 = 50.0 % [9.5, 90.5] |" in capsys.readouterr().out
    command(monkeypatch, *options)  # nothing is left to be said
    command(monkeypatch, "report", log, "--data", data, "--json", report)
    assert json.loads(report.read_text()) == told


@needs_sandbox
def test_samples_are_scored_and_a_part_is_no_result(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = tmp_path / "samples.jsonl"
    samples.write_text(json.dumps({"task_id": "Own/0", "completion": SQUARES.canonical_solution}) + "\n")
    with pytest.raises(SystemExit, match="1 problems have no answer"):
        command(monkeypatch, "score", samples, "--data", data)
    command(monkeypatch, "score", samples, "--data", data, "--partial")
    assert "**1 of 2 problems are answered" in capsys.readouterr().out
    samples.write_text(json.dumps({"task_id": "Own/7", "completion": ""}))
    with pytest.raises(SystemExit, match="has completions of 'Own/7', which is not in"):
        command(monkeypatch, "score", samples, "--data", data)


def test_a_file_that_is_no_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"task_id": "a"}')
    with pytest.raises(InputError, match=r"x.jsonl cannot be read as HumanEval.jsonl\(.gz\): KeyError: 'prompt'"):
        read(tmp_path / "x.jsonl")
    with pytest.raises(InputError, match="FileNotFoundError"):
        read(tmp_path / "none.jsonl.gz")
