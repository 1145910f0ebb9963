from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from qwen_agent.terminal.markdown import rendered, split_finished

ANSWER = """\
# Heights

The *Eiffel* Tower
is **330 m** tall.

- one

  still one
- two

1. first
2. second
```python
def f():

    return 1
```
| a | b |
|---|---|
| 1 | 2 |

Setext
======

> quoted
lazy

The end."""


def shown(text: str, width: int = 60) -> str:
    console = Console(width=width, file=io.StringIO(), highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(rendered(text))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def committed(pieces: list[str]) -> list[str]:
    """What is printed, block by block, while the pieces come in."""
    printed, rest = [], ""
    for piece in pieces:
        finished, rest = split_finished(rest + piece)
        if finished.strip():
            printed.append(finished)
    return [*printed, rest]


def test_written_letter_by_letter_it_looks_as_it_does_whole() -> None:
    blocks = committed(list(ANSWER))
    assert "".join(blocks) == ANSWER
    assert len(blocks) == 8  # the last two cannot be told apart before the text ends
    assert "\n\n".join(shown(block) for block in blocks) == shown(ANSWER)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["# a", "- b", "  c", "```", "", "> d", "e", "| f |", "|---|", "====", "    g", "1. h"]))
)
def test_nothing_is_lost_and_nothing_is_taken_back(lines: list[str]) -> None:
    text = "\n".join(lines)
    blocks = committed([letter for line in lines for letter in (line, "\n")])
    assert "".join(blocks).rstrip("\n") == text.rstrip("\n")


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a <b>c</b> List<int>", "a <b>c</b> List<int>"),
        ("<div>\nx\n</div>", "<div>\nx\n</div>"),
        ("[bank](http://evil.example/x)", "bank (http://evil.example/x)"),
        ("![alt](http://evil.example/x)", "!alt (http://evil.example/x)"),
        ("[1]: http://a.example", "[1]: http://a.example"),
        ("one\ntwo", "one\ntwo"),
        ("[bold]x[/bold] :smile:", "[bold]x[/bold] :smile:"),
        ("a\x1b[31mb\x1b]0;t\x07c\x9bd\x07e", "abcde"),
    ],
)
def test_nothing_is_hidden_and_nothing_is_obeyed(text: str, seen: str) -> None:
    assert shown(text) == seen


def test_empty_lines_inside_code_stay() -> None:
    assert shown("```\na\n\n\nb\n```").split() == ["a", "b"]
    assert shown("```\na\n\n\nb\n```").count("\n") == 3
