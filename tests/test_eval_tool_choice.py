"""First steps: what a call is worth, what is written down of it, and the tables made of that. A scripted model."""

from __future__ import annotations

import gzip
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.local import LocalRuntime
from qwen_agent.prompt import build

EVAL = Path(__file__).parent.parent / "eval"
PARAMETERS = {
    "type": "dict",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
WEATHER = {"name": "weather.get", "description": "Weather of a city.", "parameters": PARAMETERS}


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EVAL))


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    asked = [[{"role": "user", "content": "Weather in Oslo?"}]]
    rows = [{"id": f"{i}", "question": asked, "function": [WEATHER]} for i in range(4)]
    gold = [{"id": row["id"], "ground_truth": [{"weather.get": {"city": ["Oslo"], "days": [""]}}]} for row in rows]
    files = (
        ("BFCL_v4_multiple", rows),
        ("possible_answer_BFCL_v4_multiple", gold),
        ("BFCL_v4_irrelevance", rows),
    )
    for name, content in files:
        with gzip.open(tmp_path / f"{name}.json.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in content)
    return tmp_path


def call(name: str, arguments: str) -> str:
    return f"Thought: t\nAction: {name}\nAction Input: {arguments}"


@pytest.mark.parametrize(
    ("text", "strict", "repaired"),  # parses, listed, fits
    [
        (call("weather.get", '{"city": "Oslo", "days": 2}'), (1, 1, 1), (1, 1, 1)),
        (call("weather.get", '{"city": "Oslo", "days": "2"}'), (1, 1, 0), (1, 1, 1)),
        (call("weather.get", "{'city': 'Oslo'}"), (0, 1, 0), (1, 1, 1)),
        (call("weather.get", '{"city": "Oslo", "unit": "C"}'), (1, 1, 0), (1, 1, 0)),
        (call("weather.get", '["Oslo"]'), (0, 1, 0), (0, 1, 0)),
        (call("weather", '{"city": "Oslo"}'), (1, 0, 0), (1, 0, 0)),
    ],
)
def test_the_form_of_a_call(
    folder: Path, text: str, strict: tuple[int, int, int], repaired: tuple[int, int, int]
) -> None:
    case = module("bfcl").load(folder, "multiple", 1)[0]
    found = module("verdict").verdict(case, text, False)
    assert found.called
    assert (found.parses, found.listed, found.fits) == strict
    assert (found.repaired_parses, found.repaired_listed, found.repaired_fits) == repaired


def test_nothing_is_mended_in_an_output_that_was_cut_off(folder: Path) -> None:
    case = module("bfcl").load(folder, "multiple", 1)[0]
    text = call("weather.get", '{"city": "Oslo"')
    assert module("verdict").verdict(case, text, False).repaired_fits
    assert not module("verdict").verdict(case, text, True).repaired_fits


def test_an_answer_is_no_call(folder: Path) -> None:
    case = module("bfcl").load(folder, "multiple", 1)[0]
    assert not any(
        getattr(module("verdict").verdict(case, "Thought: no.\nFinal Answer: I cannot.", False), name)
        for name in ("called", "parses", "listed", "fits", "repaired_parses", "repaired_fits", "right_tool")
    )


def test_whole_schemas_say_what_is_inside(folder: Path) -> None:
    inside = {"type": "array", "items": {"type": "dict", "properties": {"x": {"type": "float"}}}, "description": "d"}
    chosen = {"type": "array", "enum": ["a", "b"]}
    given = {"type": "dict", "properties": {"points": inside, "kinds": chosen}, "required": []}
    bfcl = module("bfcl")
    shallow, whole = (bfcl._object(given, kind)["properties"] for kind in (False, True))
    assert shallow["points"] == {"description": "d", "type": "array"}
    assert whole["points"]["items"]["properties"] == {"x": {"type": "number"}}
    assert shallow["kinds"] == {"type": "array", "items": {"enum": ["a", "b"]}}


@pytest.mark.parametrize("grammar", ["step", "names"])
def test_a_grammar_holds_the_model_to_the_names(folder: Path, embedded: LocalRuntime, grammar: str) -> None:
    case = module("bfcl").load(folder, "multiple", 1)[0]
    made = module("first_steps").GRAMMARS[grammar](case)
    prompt = build("Say: Action: nonsense", tools=case.functions)
    forced = GenerationConfig(max_new_tokens=20, grammar=made, stop=("\nAction Input",))
    *_, last = embedded.stream(prompt, forced)
    text = "".join(segment.content for segment in last.output)
    assert "Action:" not in text or "Action: weather.get" in text


class OneStep:
    """Stands for the package's runtime: calls for the first three questions, answers the others, and says how sure."""

    def __init__(self, scripted: Any) -> None:
        calls = [call("weather.get", '{"city": "Oslo"}')] * 3
        answers = ["Thought: I now know the final answer.\nFinal Answer: no"] * 5
        self.runtimes = [scripted(text, weights=(0.2, 0.8)) for text in calls]
        self.runtimes += [scripted(text, weights=(0.7, 0.3)) for text in answers]

    def stream(self, prompt: Any, config: GenerationConfig) -> Any:
        return self.runtimes.pop(0).stream(prompt, config)


def test_a_run_is_written_resumed_and_reported(
    folder: Path,
    tmp_path: Path,
    scripted: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tool_choice = module("tool_choice")
    runtime = OneStep(scripted)
    monkeypatch.setattr(tool_choice, "load_runtime", lambda *args, **kwargs: runtime)

    def command(*args: str) -> str:
        monkeypatch.setattr(sys, "argv", ["tool_choice.py", *args])
        tool_choice.main()
        return capsys.readouterr().out

    out, data = str(tmp_path / "out.jsonl"), ("--data", str(folder))
    run = ("run", "embedded", "--out", out, *data, "--categories", "multiple", "irrelevance")
    command(*run, "--shard", "1/2")
    assert len(Path(out).read_text().splitlines()) == 4
    table = command(*run)
    assert len(Path(out).read_text().splitlines()) == 8
    assert not runtime.runtimes
    assert "| multiple | embedded, step | 4 | 50.0 [15.0, 85.0] | 50.0" in table
    assert "| multiple | embedded, step | 2 | 100.0 (2) | 100.0 (2) | 100.0 (2)" in table
    assert "| irrelevance | embedded, step | 4 | 25.0" in table
    assert "as written" in table
    picture = tmp_path / "curve.png"
    assert command("report", out, *data, "--plot", str(picture)) == table
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="holds another run"):
        command(*run, "--grammar", "none")


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "a/b"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Exception, match="is no part of a whole"):
        module("tool_choice")._shard(text)


def test_intervals_and_sign_test() -> None:
    report = module("choice_report")
    assert report.wilson(50, 100) == pytest.approx((40.4, 59.6), abs=0.05)
    assert report.wilson(0, 10)[0] == 0.0
    assert report.sign_test(5, 5) == 1.0
    assert report.sign_test(0, 6) == pytest.approx(2 / 64)
