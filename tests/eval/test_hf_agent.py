"""The benchmark of Transformers Agents: the original's scores, its quirks, and the run from prompt to table."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hf_agent
import hf_agent_scoring as scoring
import model_options
import pytest
from hf_agent_scoring import TOOLS, ChatScorer, Task, load, scored_run, value_of

from qwen_agent.errors import InputError
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import Chunk, text_of
from qwen_agent.types import Prompt, Text, Usage

RUN, CHAT = load("run"), load("chat")


def written(mode: str, explanation: str, code: str) -> str:
    if mode == "run":
        return f" tools: {explanation}\n\nAnswer:\n```py\n{code}\n```"
    return f"I will use {explanation}\n\n```py\n{code}\n```"


def right(mode: str, task: Task) -> str:
    return written(mode, " ".join(f"`{name}`" for name in TOOLS if name in task.answers[0]), task.answers[0])


def right_and_then(line: str) -> Callable[[str, Task], str]:
    return lambda mode, task: written(mode, "x", f"{task.answers[0]}\n{line}")


def totals(mode: str, write: Callable[[str, Task], str]) -> tuple[float, ...]:
    """The three scores of someone who writes, in per cent."""
    scored = []
    for dialogue in RUN if mode == "run" else CHAT:
        scorer = ChatScorer()
        for task in dialogue.steps:
            text = write(mode, task)
            scored.append(scored_run(task, text) if mode == "run" else scorer.scored(task, text))
    sums = [sum(getattr(each.scores, name) for each in scored) for name in hf_agent.SCORES]
    return tuple(round(100 * each / len(scored), 2) for each in sums)


def test_the_tasks_are_the_originals() -> None:
    assert len(RUN) == 27 and {len(dialogue.steps) for dialogue in RUN} == {1}
    assert len({dialogue.id.rpartition("-")[0] for dialogue in CHAT}) == 11
    assert sum(len(dialogue.steps) for dialogue in CHAT) == 47
    assert RUN[-1].steps[0].text.count("Fetch the file") == 1  # two phrasings, for want of a comma
    assert RUN[-1].steps[0].inputs == {"url": "<<url>>"} and RUN[-2].steps[0].inputs == {"prompt": "A lobster swimming"}


# Made with evaluate_agent and evaluate_chat_agent of transformers 4.31.0 and 4.33.3; what ended them counts as nothing.
@pytest.mark.parametrize(
    ("write", "run", "chat"),
    [
        (right, (100.0, 100.0, 100.0), (100.0, 100.0, 100.0)),
        (lambda mode, task: written(mode, "", ""), (45.37, 45.37, 30.0), (71.81, 71.81, 30.0)),
        (lambda mode, task: "nope", (45.37, 45.37, 30.0), (71.81, 71.81, 30.0)),
        (lambda mode, task: right(mode, task) + "Answer: x", (45.37, 45.37, 30.0), (100.0, 100.0, 100.0)),
        (lambda mode, task: right(mode, task) + "\nThat is it", (100.0, 100.0, 30.0), (100.0, 100.0, 100.0)),
        (lambda mode, task: written(mode, " ".join(f"`{n}`" for n in TOOLS), "x=1"), (0, 45.37, 30), (0, 71.81, 30)),
        # A wrong call raises and loses what was computed; a call of no tool only ends it.
        (right_and_then("image_segmenter(image, label='x')"), (45.37, 75.0, 76.67), (71.81, 75.0, 77.66)),
        (right_and_then("f(1)"), (45.37, 100.0, 100.0), (71.81, 100.0, 100.0)),
        (right_and_then("int('x')"), (45.37, 100.0, 30.0), (71.81, 100.0, 30.0)),
        (right_and_then("a, b = [1, 2]"), (45.37, 100.0, 30.0), (71.81, 100.0, 30.0)),
        (right_and_then("if 1:\n    x = 3"), (45.37, 100.0, 30.0), (71.81, 100.0, 30.0)),
    ],
)  # fmt: skip
def test_writers_score_as_they_did_in_the_original(
    write: Callable[[str, Task], str], run: tuple[float, ...], chat: tuple[float, ...]
) -> None:
    assert totals("run", write) == run
    assert totals("chat", write) == chat


CAPTIONED = Task("Describe it.", {"image": "<<image>>"}, ("text_reader(image_captioner(image))", "text_reader(image)"))


@pytest.mark.parametrize(
    ("explanation", "code", "scores"),
    [
        # Two tools are asked for.
        ("`text_reader` and `image_captioner`", CAPTIONED.answers[0], (1.0, 1.0, 1.0)),
        ("text_reader and image_captioner", CAPTIONED.answers[0], (0.5, 1.0, 1.0)),  # no backticks, two are missing
        ("`text_reader` `translator`", "text_reader(image)", (0.75, 1.0, 1.0)),  # the second answer, with one tool
        ("`text_reader`", "x = text_reader('a')", (0.75, 0.75, 0.3)),  # the first answer is asked for
        ("", "r = {'a': text_reader(image)}", (0.75, 1.0, 0.75)),  # in a dict
        ("", "# text_reader image_captioner\nx = 1", (0.5, 1.0, 0.3)),  # names in a comment are used
        ("", "text_reader(image_captioner(imge))", (0.5, 1.0, 1.0)),  # spelt alike
    ],
)
def test_scores_worked_by_hand(explanation: str, code: str, scores: tuple[float, ...]) -> None:
    scored = scored_run(CAPTIONED, written("run", explanation, code))
    assert (scored.scores.selection, scored.scores.used, scored.scores.code) == scores


def test_the_stand_ins_refuse_as_the_originals_do() -> None:
    assert value_of("transcriber(text)", {"text": "<<text>>"}) is None
    assert value_of("image_qa(text, 'What?')", {"text": "<<text>>"}) is None
    assert value_of("x = 3\nopen('a')", {}) == 3
    assert value_of("x = (", {}) is None
    assert TOOLS["image_segmenter"]("i", "p") == "This is the mask of p in i"


def test_a_chat_uses_what_was_computed_before() -> None:
    scorer = ChatScorer()
    translate, classify = CHAT[0].steps
    assert scorer.scored(translate, right("chat", translate)).scores.code == 1.0
    assert scorer.scored(classify, "No code.").unreadable == "there is no block of code"
    assert scorer.scored(classify, right("chat", classify)).scores.code == 1.0
    alone = ChatScorer().scored(classify, right("chat", classify))
    assert alone.scores.code == 1.0 and alone.value == "None"  # a quirk: nothing is computed on either side


def test_a_file_that_is_no_tasks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tasks.json").write_text("{}")
    with pytest.raises(InputError, match=r'tasks.json is no file of tasks .* with "run_tasks" and "chat_tasks"'):
        load("run", tmp_path / "tasks.json")


# ---- from the command to the table


class Oracle:
    """Writes the right code for the task at the end of the prompt, or fails; and counts how often it is asked."""

    name, window = "oracle", 10_000

    def __init__(self, fails: Callable[[str], bool] = lambda prompt: False) -> None:
        self.asked = 0
        self._fails = fails
        self._answers = {
            (mode, task.text): right(mode, task)
            for mode, dialogues in (("run", RUN), ("chat", CHAT))
            for dialogue in dialogues
            for task in dialogue.steps
        }

    def stream(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        self.asked += 1
        text = text_of(prompt)
        if self._fails(text):
            raise OSError("the server is gone")
        mode = "run" if "I will use the following" in text else "chat"
        end = text.rpartition("<|im_end|>")[0] or text
        place = {"run": end.rfind('Task: "') + 7, "chat": end.rfind("_HUMAN_: ") + 9}[mode]
        task = end[place:].partition('"\n' if mode == "run" else "\n\n")[0]
        written = self._answers[mode, task]
        yield Chunk(written, finish="stop", output=(Text(written),), usage=Usage(1, 0, 7))

    def score(self, prompt: Prompt, choices: Any) -> list[float]:
        raise NotImplementedError

    def count_tokens(self, prompt: Prompt) -> int:
        return 1


def run(monkeypatch: pytest.MonkeyPatch, oracle: Oracle, *options: str) -> None:
    monkeypatch.setattr(model_options, "load_once", lambda model: oracle)
    monkeypatch.setattr(sys, "argv", ["hf_agent.py", *options])
    hf_agent.main()


# The oracle knows tasks by their text, and "Read it out loud." stands in two dialogues with different answers.
@pytest.mark.parametrize(("mode", "asked", "exact"), [("run", 27, 27), ("chat", 47, 45)])
def test_a_run_is_resumed_and_reported(
    mode: str,
    asked: int,
    exact: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log, report = tmp_path / "log.jsonl", tmp_path / "report.json"
    oracle = Oracle()
    run(monkeypatch, oracle, "run", "m", "--mode", mode, "--out", str(log), "--json", str(report))
    first = json.loads(report.read_text())
    assert oracle.asked == asked and first["exact"]["hits"] == exact
    assert f"| {exact}/{asked} = " in capsys.readouterr().out
    log.write_text("".join(log.read_text().splitlines(keepends=True)[: asked // 2]) + '{"key": "tor')
    run(monkeypatch, again := Oracle(), "run", "m", "--mode", mode, "--out", str(log), "--json", str(report))
    assert again.asked == asked - asked // 2
    assert json.loads(report.read_text()) == first
    run(monkeypatch, none := Oracle(), "report", str(log), "--json", str(report))
    assert none.asked == 0 and json.loads(report.read_text()) == first


def test_the_floor_and_the_published_figures_stand_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, Oracle(), "run", "m", "--mode", "run", "--out", str(tmp_path / "log.jsonl"))
    out = capsys.readouterr().out
    assert "| floor: an agent that does nothing | 45.37 (12.25/27) | 45.37 (12.25/27) | 30.00 (8.1/27) | 0/27 |" in out
    assert "| Qwen-7B-Chat (published) | 90.74 (24.5/27) | 92.59 (25/27) | 74.07 (20/27) | 17/27 = 63.0 %" in out
    for figures in ("(26.3/27) | 26/27", "(23.5/27) | 22/27", "(18.6/27) | 15/27"):
        assert figures in out


def test_an_error_is_no_score_and_shards_make_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = [str(tmp_path / f"{number}.jsonl") for number in (1, 2)]
    run(monkeypatch, Oracle(), "run", "m", "--mode", "run", "--out", logs[0], "--shard", "1/2")
    assert "**14 of 27 tasks" in capsys.readouterr().out
    fails = Oracle(lambda prompt: "Find what is in the picture stored in `image` then" in prompt)
    with pytest.raises(SystemExit, match="1 tasks have no answer"):
        run(monkeypatch, fails, "run", "m", "--mode", "run", "--out", logs[1], "--shard", "2/2")
    with pytest.raises(SystemExit, match="13 tasks have no answer"):
        run(monkeypatch, Oracle(), "report", logs[0])
    capsys.readouterr()
    run(monkeypatch, Oracle(), "report", *logs, "--partial")
    out = capsys.readouterr().out
    assert "**26 of 27 tasks are answered" in out and "| **m** | 100.00 (26/26) |" in out
    run(monkeypatch, Oracle(), "run", "m", "--mode", "run", "--out", logs[1], "--shard", "2/2")
    run(monkeypatch, Oracle(), "report", *logs)
    with pytest.raises(SystemExit, match="one model and one mode"):
        run(monkeypatch, Oracle(), "run", "n", "--mode", "run", "--out", str(tmp_path / "n.jsonl"), "--limit", "1")
        run(monkeypatch, Oracle(), "report", logs[0], str(tmp_path / "n.jsonl"))


def test_a_model_can_be_held_to_the_grammar(monkeypatch: pytest.MonkeyPatch, scripted: Any) -> None:
    runtime = scripted(right("chat", CHAT[0].steps[0]), right("chat", CHAT[0].steps[1]))
    scored = hf_agent.play_chat(CHAT[0], runtime, GenerationConfig(), constrained=True)
    assert [each.scores.code for each in scored] == [1.0, 1.0]
    assert all(config.grammar is not None for config in runtime.configs)
    assert '"translated_text"' in runtime.configs[1].grammar.lark  # a variable of the step before


def test_the_file_of_tasks_says_where_it_is_from() -> None:
    told = json.loads(scoring.TASKS.read_text())
    assert told["licence"] == "Apache-2.0" and "transformers v4.29.2" in told["source"]
