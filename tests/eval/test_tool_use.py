"""First steps: what one is worth, and the harness from the questions to the tables, with scripted models."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tool_report
import tool_use
from answers import Answer, Question
from cases import Case
from first_steps import GRAMMARS, question_of
from imagined import calls_first, never_calls, oracle, wrong_argument, wrong_tool
from tool_sets import SETS
from verdict import verdict

from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.local import LocalRuntime
from qwen_agent.prompt import build

CATEGORIES = ("multiple", "irrelevance")


@pytest.fixture
def folder(data: Path) -> Path:
    return data / "tool_use" / "bfcl"


@pytest.fixture
def weather(folder: Path) -> Case:
    return next(SETS["bfcl"].load(folder, "multiple"))


def call(name: str, arguments: str) -> str:
    return f"Thought: t\nAction: {name}\nAction Input: {arguments}"


# ---- one step -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        (call("weather.get", '{"city": "Oslo"}'), "right"),
        (call("weather.get", '{"city": "OSLO, Norway", "days": 1}') + "\nObservation: sunny", "right"),
        ("Thought: no.\nFinal Answer: I cannot.", "no call"),
        (call("weather", '{"city": "Oslo"}'), "unknown tool"),
        (call("ferry.plan", '{"ports": ["Oslo"]}'), "wrong tool"),
        (call("weather.get", "{'city': 'Oslo'}"), "bad JSON"),
        (call("weather.get", "not json"), "bad JSON"),
        (call("weather.get", "{}"), "missing argument"),
        (call("weather.get", '{"city": "Oslo", "unit": "C"}'), "extra argument"),
        (call("weather.get", '{"city": "Oslo", "days": "1"}'), "wrong type"),
        (call("weather.get", '{"city": "Bergen"}'), "wrong value"),
    ],
)
def test_what_is_wrong(weather: Case, text: str, outcome: str) -> None:
    found = verdict(weather, text, False)
    assert found.outcome == outcome
    assert found.right_arguments == (outcome == "right")
    assert verdict(weather, text, True).outcome == ("right" if outcome == "right" else "cut off")


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
    weather: Case, text: str, strict: tuple[int, int, int], repaired: tuple[int, int, int]
) -> None:
    found = verdict(weather, text, False)
    assert found.called
    assert (found.parses, found.listed, found.fits) == strict
    assert (found.repaired_parses, found.repaired_listed, found.repaired_fits) == repaired


def test_nothing_is_mended_in_an_output_that_was_cut_off(weather: Case) -> None:
    text = call("weather.get", '{"city": "Oslo"')
    assert verdict(weather, text, False).repaired_fits
    assert not verdict(weather, text, True).repaired_fits


@pytest.mark.parametrize(
    ("text", "attempt", "valid", "outcome"),
    [
        ("Thought: no.\nFinal Answer: I cannot.", False, False, "right"),
        (call("weather.get", '{"city": "Oslo"}'), True, True, "needless call"),
        (call("weather.get", "not json"), True, False, "needless call"),
        (call("poem", "{}"), True, False, "needless call"),
        ("Thought: t\n行动：weather.get\n行动输入：{}", False, False, "needless call"),
    ],
)
def test_where_no_call_is_right(folder: Path, text: str, attempt: bool, valid: bool, outcome: str) -> None:
    poem = next(SETS["bfcl"].load(folder, "irrelevance"))
    found = verdict(poem, text, False)
    assert (found.attempt, found.valid_call, found.outcome) == (attempt, valid, outcome)


@pytest.mark.parametrize("grammar", ["step", "names"])
def test_a_grammar_holds_the_model_to_the_names(weather: Case, embedded: LocalRuntime, grammar: str) -> None:
    prompt = build("Say: Action: nonsense", tools=weather.functions)
    forced = GenerationConfig(max_new_tokens=20, grammar=GRAMMARS[grammar](weather), stop=("\nAction Input",))
    *_, last = embedded.stream(prompt, forced)
    text = "".join(segment.content for segment in last.output)
    assert "Action:" not in text or "Action: weather.get" in text or "Action: ferry.plan" in text


def test_the_originals_prompts_are_given_as_they_are(data: Path) -> None:
    case = next(SETS["qwen"].load(data / "tool_use" / "qwen", "positive"))
    texts = [getattr(segment, "content", "") for segment in question_of(case, "none").prompt]
    assert case.given in texts


# ---- agents without a model: floors and ceiling ---------------------------------------------------------------------


def report_of(folder: Path, agent: Callable[[Case], str]) -> dict[str, Any]:
    cases = [case for category in CATEGORIES for case in SETS["bfcl"].load(folder, category)]
    answers = {f"{c.category}/{c.id}": Answer(f"{c.category}/{c.id}", agent(c), tokens=1) for c in cases}
    about = dict.fromkeys(("set", "sha256", "data", "model", "weights", "grammar", "schemas"), "bfcl")
    return tool_report.as_json(tool_report.judged(about, cases, answers), list, "characters")["categories"]


def value(report: dict[str, Any], category: str, name: str) -> float:
    return report[category]["metrics"][name]["value"]


@pytest.mark.parametrize(
    ("agent", "expected"),
    # calls, right tool, right arguments, selection by both rules; false positives: attempts, valid calls, both rules
    [
        (oracle, (1, 1, 1, 1, 1, 0, 0, 0, 0)),
        (never_calls, (0, 0, 0, 0, 0, 0, 0, 0, 0)),
        # of m0 to m3 the first tool is the right one in m0 alone (weather) and m2 (ferry first, weather right): 1 of 4
        (calls_first, (1, 0.25, 0, 0.25, 0.25, 1, 1, 1, 1)),
        (wrong_tool, (1, 0, 0, 0, 0, 1, 1, 1, 1)),
        (wrong_argument, (1, 1, 0, 1, 1, 1, 1, 1, 1)),
    ],
)
def test_floors_and_ceiling(folder: Path, agent: Callable[[Case], str], expected: tuple[float, ...]) -> None:
    report = report_of(folder, agent)
    selection = [f"{rules}: tool selection" for rules in ("qwen-2023-08", "qwen-2023-12")]
    positive = [value(report, "multiple", name) for name in ("calls", "right tool", "right arguments", *selection)]
    wrong = [f"{rules}: false positives" for rules in ("qwen-2023-08", "qwen-2023-12")]
    negative = [value(report, "irrelevance", n) for n in ("any Action line", "call of a listed tool", *wrong)]
    assert tuple(positive + negative) == expected


def test_the_oracle_has_the_whole_rouge(folder: Path) -> None:
    report = report_of(folder, oracle)
    assert value(report, "multiple", "qwen-2023-08: tool input") == 1.0
    assert value(report, "multiple", "qwen-2023-12: tool input") == 1.0
    floors = report["multiple"]["floors"]
    assert floors["never calls"]["right tool"] == 0.0
    assert floors["calls the first tool"]["right tool"] == 0.25
    assert report["multiple"]["ceiling"]["oracle"]["right arguments"] == 1.0


# ---- the whole way --------------------------------------------------------------------------------------------------


class Model:
    """Right for three questions of four where a call is right, calls once where none is, and says how sure it is."""

    def __init__(self, folder: Path) -> None:
        self.cases = {f"{c.category}/{c.id}": c for name in CATEGORIES for c in SETS["bfcl"].load(folder, name)}
        self.asked: list[str] = []
        self.fails: set[str] = set()

    def __call__(self, questions: Sequence[Question]) -> Iterator[Answer]:
        for question in questions:
            self.asked.append(question.id)
            case = self.cases[question.id]
            if question.id in self.fails:
                yield Answer(question.id, "", "HTTP 500")
                continue
            calls = question.id not in ("multiple/m3", "irrelevance/i2", "irrelevance/i3", "irrelevance/i4")
            text = (oracle(case) if case.gold else calls_first(case)) if calls else never_calls(case)
            yield Answer(question.id, text, tokens=10, weights=(0.2, 0.8) if calls else (0.7, 0.3), seconds=0.5)


@pytest.fixture
def model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    model = Model(folder)
    monkeypatch.setattr(tool_use, "_ask", lambda args, cases: model)
    return model


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*args: object) -> str:
        monkeypatch.setattr(sys, "argv", ["tool_use.py", *map(str, args)])
        tool_use.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def asking(folder: Path, tmp_path: Path) -> tuple[object, ...]:
    return ("run", "embedded", "--set", "bfcl", "--data", folder, "--categories", *CATEGORIES)


def test_a_run_is_resumed_reported_and_compared(
    model: Model, command: Callable[..., str], asking: tuple[object, ...], tmp_path: Path
) -> None:
    parts = [tmp_path / f"{i}.jsonl" for i in (1, 2)]
    for i, path in enumerate(parts, 1):
        assert command(*asking, "--out", path, "--shard", f"{i}/2") == ""
    assert len(model.asked) == 8
    with pytest.raises(SystemExit, match="INCOMPLETE, no report: embedded, step: 4 of 8 asked"):
        command("report", parts[0])
    assert "**INCOMPLETE: 4 of 8 asked.**" in command("report", parts[0], "--partial")
    out, page, picture = tmp_path / "out.json", tmp_path / "out.md", tmp_path / "curve.png"
    text = command("report", *parts, "--json", out, "--markdown", page, "--plot", picture)
    assert page.read_text() == text
    assert "| multiple | embedded, step | 4 | 75.0 [30.1, 95.4] | 75.0 [30.1, 95.4] | 75.0" in text
    assert "| irrelevance | embedded, step | 4 | 25.0 [4.6, 69.9]" in text
    # of four right calls three are called, of four needless ones one; no threshold tells it from those three
    assert "| bfcl | embedded, step | 20 % | 1.0000 | 0.0 | 0.0 | 0.0 |" not in text
    assert "| bfcl | embedded, step | as written | - | 25.0" in text
    assert "Qwen-7B-Chat | 99 % | 0.89 | 9.7 %" in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    report = json.loads(out.read_text())
    assert report["counts"] == {"n": 8, "asked": 8, "errors": 0, "cut": 0, "parse_failures": 0}
    assert (report["set"], report["complete"], report["tokens"], report["seconds"]) == ("bfcl", True, 80, 4.0)
    assert len(report["data"]["BFCL_v4_irrelevance.json"]) == 64
    assert report["settings"]["grammar"] == "step"
    assert report["categories"]["multiple"]["outcomes"] == {"right": 3, "no call": 1}
    whole = tmp_path / "free.jsonl"
    command(*asking, "--out", whole, "--grammar", "none")
    assert "| multiple | embedded, step | embedded, none | right tool | 0 | 0 | 1.00 |" in command(
        "report", *parts, whole
    )
    assert len(command(*asking, "--out", whole, "--grammar", "none")) > 0
    assert len(model.asked) == 16
    with pytest.raises(SystemExit, match=r"holds another run .*grammar is 'none' there, 'step' here"):
        command(*asking, "--out", whole)


def test_errors_are_no_wrong_answers(
    model: Model, command: Callable[..., str], asking: tuple[object, ...], tmp_path: Path
) -> None:
    out = tmp_path / "log.jsonl"
    model.fails = {"multiple/m3"}
    with pytest.raises(SystemExit, match="1 of 8 questions have no answer"):
        command(*asking, "--out", out)
    with pytest.raises(SystemExit, match="1 of 8 answers are missing"):
        command("report", out)
    text = command("report", out, "--max-errors", "0.2")
    assert "1 errors (not scored)" in text
    assert "| multiple | embedded, step | 3 | 100.0" in text, "the other three are all of them"
    model.fails = set()
    assert "| multiple | embedded, step | 4 | 75.0" in command(*asking, "--out", out)
    assert model.asked.count("multiple/m3") == 2
    assert len(model.asked) == 9


def test_a_killed_run_gives_the_same_numbers_with_the_rest_alone_asked(
    model: Model, command: Callable[..., str], asking: tuple[object, ...], tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    text = command(*asking, "--out", whole)
    lines = whole.read_text().splitlines(keepends=True)
    killed.write_text("".join(lines[:3]) + lines[3][:40])
    assert command(*asking, "--out", killed) == text
    assert len(model.asked) == 8 + 5


def test_other_data_are_noticed(
    model: Model, command: Callable[..., str], asking: tuple[object, ...], tmp_path: Path, folder: Path
) -> None:
    out = tmp_path / "log.jsonl"
    command(*asking, "--out", out)
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    moved = command("report", out, "--data", tmp_path)
    assert moved == command("report", out)
    (tmp_path / "BFCL_v4_irrelevance.json").write_text("{}\n")
    with pytest.raises(SystemExit, match="are not those that were asked"):
        command("report", out, "--data", tmp_path)


def test_a_limit_counts_in_each_category(
    model: Model, command: Callable[..., str], asking: tuple[object, ...], tmp_path: Path
) -> None:
    command(*asking, "--out", tmp_path / "log.jsonl", "--limit", 1)
    assert sorted(model.asked) == ["irrelevance/i1", "multiple/m0"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--weigh",), "--weigh goes with --url"),
        (("--reference",), "transformers has no grammar"),
        (("--categories", "nonsense"), "bfcl has no category 'nonsense': choose from simple_python"),
    ],
)
def test_options_that_do_not_go_together(
    command: Callable[..., str],
    asking: tuple[object, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    said: str,
) -> None:
    with pytest.raises(SystemExit):
        command(*asking, "--out", tmp_path / "log.jsonl", *more)
    assert said in capsys.readouterr().err


class Completions(http.server.BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that always calls the same tool."""

    text = call("weather.get", '{"city": "Oslo"}')

    def do_GET(self) -> None:
        self._send({"data": [{"id": "tiny", "owned_by": "somebody", "max_model_len": 4096}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self.path.endswith("/chat/completions"):
            self.send_error(404)
            return
        assert body["stream"]
        events = [
            {"choices": [{"index": 0, "delta": {"role": "assistant", "content": self.text}, "finish_reason": None}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        ]
        self._send("".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n")

    def _send(self, content: Any) -> None:
        stream = isinstance(content, str)
        raw = (content if stream else json.dumps(content)).encode()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream" if stream else "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


def test_an_endpoint_is_asked(command: Callable[..., str], asking: tuple[object, ...], tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Completions) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        run, _, *rest = asking
        text = command(run, "tiny", *rest, "--out", tmp_path / "log.jsonl", "--url", url, "--concurrency", 3)
        server.shutdown()
    # m0 and m2 want the weather, of Oslo only m0
    assert "| multiple | tiny, endpoint, none | 4 | 100.0 [51.0, 100.0] | 50.0 [15.0, 85.0] | 25.0 [4.6, 69.9]" in text
    assert "| irrelevance | tiny, endpoint, none | 4 | 100.0 [51.0, 100.0]" in text


def test_a_picture_of_nothing_is_refused(folder: Path, tmp_path: Path) -> None:
    about = dict.fromkeys(("set", "model", "weights", "grammar", "schemas"), "x")
    with pytest.raises(SystemExit, match="nothing to plot"):
        tool_report.plot([tool_report.judged(about, [], {})], tmp_path / "curve.png")


def test_sign_test() -> None:
    assert tool_report.sign_test(5, 5) == 1.0
    assert tool_report.sign_test(0, 6) == pytest.approx(2 / 64)
