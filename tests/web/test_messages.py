"""What the chat shows: data, never HTML."""

from __future__ import annotations

import pytest
from markdown_it import MarkdownIt

from qwen_agent.errors import Busy, ContextOverflow, InputError
from qwen_agent.types import Artifact, StopReason
from qwen_agent.web.messages import fenced, plain_markdown, problem_text, shown
from qwen_agent.web.texts import ENGLISH, JAPANESE
from qwen_agent.web.turn import ShownStep, Turn

FILE = Artifact("0" * 12, "a.csv", "text/plain", 3, "/tmp/a.csv")


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "a <b onclick=x>b</b>",
        "\\<img src=x onerror=y>",
        "</div><style>*{display:none}</style>",
        "<!-- hidden -->",
        "<?php ?>",
        "`` unfinished <b>",
        "`a` <b> `c`",
        "```\ncode\n```\n<b>",
        "~~~\n```\n~~~\n<b>x</b>\n```\n",
        "![p](https://example.com/p.png)",
        "![p][r]\n\n[r]: https://example.com/p.png",
    ],
)
def test_no_html_and_no_picture_comes_out(text: str) -> None:
    page = MarkdownIt("commonmark", {"html": True}).render(plain_markdown(text))
    tags = {part.split()[0].strip("/") for part in page.split("<")[1:] for part in [part.split(">")[0]]}
    assert tags <= {"p", "code", "pre", "a"}, page


@pytest.mark.parametrize("text", ["`<b>`", "```html\n<b>\n```", "``a ` <b>``", "```\n<b> is still open"])
def test_code_stays_as_it_is(text: str) -> None:
    assert plain_markdown(text) == text


def test_what_is_no_tag_stays_as_it_is() -> None:
    assert plain_markdown("1 < 2, a <3, **bold** [l](https://x.y)") == "1 < 2, a <3, **bold** [l](https://x.y)"


def test_a_fence_cannot_be_ended_from_inside() -> None:
    inside = "a\n```\n<b>\n`````\nc"
    tokens = MarkdownIt("commonmark").parse(fenced(inside, "text"))
    assert [token.type for token in tokens] == ["fence"]
    assert tokens[0].content == inside + "\n"


def test_long_observations_are_cut_for_the_eye() -> None:
    assert len(fenced("x" * 10_000)) < 6100


def test_messages_belong_to_turns() -> None:
    step = ShownStep("t", "calculator", "{}", observation="2", seconds=0.25, artifacts=(FILE,), phase="done")
    turns = [
        Turn("1+1?", (FILE,), "", [step], "2", end=StopReason.FINAL_ANSWER),
        Turn("and?", answer="3", end=StopReason.MAX_STEPS),
    ]
    messages, owners = shown(turns, ENGLISH)
    assert owners == [0] * 5 + [1] * 3
    assert [message["role"] for message in messages] == ["user", "user", *["assistant"] * 3, "user", *["assistant"] * 2]
    assert messages[2]["metadata"] == {"title": "Used calculator", "status": "done", "duration": 0.25}
    assert messages[3]["content"]["path"] == FILE.path
    assert "too many steps" in messages[-1]["content"]


def test_what_goes_on_is_pending() -> None:
    turn = Turn("?")
    (_, waiting), _ = shown([turn], ENGLISH)
    assert waiting["metadata"] == {"title": "Thinking", "status": "pending"}
    turn.read = (50, 200)
    (_, reading), _ = shown([turn], ENGLISH)
    assert reading["metadata"]["title"] == "Reading, 25 %"
    turn.steps.append(ShownStep("t", "calc<b>", '{"a"', phase="writing"))
    (_, writing), _ = shown([turn], JAPANESE)
    assert writing["metadata"] == {"title": "calcb を使用中", "status": "pending"}


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (ContextOverflow(9000, 8192), "9000 tokens, and the model takes 8192"),
        (Busy(64), "busy"),
        (InputError("the value is wrong: fix it"), "the value is wrong: fix it"),
        (RuntimeError("/home/secret"), "RuntimeError"),
    ],
)
def test_problems_are_readable_and_tell_no_secrets(problem: Exception, words: str) -> None:
    messages, _ = shown([Turn("?", answer="so far", problem=problem)], ENGLISH)
    assert words in messages[-1]["content"]
    assert "secret" not in messages[-1]["content"]
    assert messages[-2]["content"] == "so far"
    assert problem_text(problem, JAPANESE) != problem_text(problem, ENGLISH)
