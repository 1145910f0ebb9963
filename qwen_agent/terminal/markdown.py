"""Markdown on a terminal, also while it is being written.

Promises
- nothing_is_hidden: HTML, link targets and definitions are shown as text, not swallowed; a line break is one.
- nothing_is_clickable: an address stands beside its text, so that a link cannot pose as another.
"""

from __future__ import annotations

from functools import cache
from typing import ClassVar

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markdown import Heading, Markdown, MarkdownElement
from rich.segment import Segment
from rich.text import Text

from qwen_agent.prompt import printable


def rendered(text: str) -> RenderableType:
    """The text as something that rich prints. Control characters and terminal escapes are taken out."""
    blocks = [_Block(block) for block in _blocks(printable(text)) if block.strip()]
    return Group(*[part for block in blocks for part in (Text(""), block)][1:])


def split_finished(text: str) -> tuple[str, str]:
    """(the blocks that nothing written later can change, the rest). Together they are the text."""
    whole = text[: text.rfind("\n") + 1]
    *finished, _ = _blocks(whole) or [""]
    return "".join(finished), text[sum(map(len, finished)) :]


class _Block:
    """One block of Markdown, without the empty lines that rich puts round some kinds of them."""

    def __init__(self, text: str) -> None:
        self._markdown = _Markdown("", code_theme="ansi_dark", hyperlinks=False)
        self._markdown.parsed = _parser().parse(text)
        for token in self._markdown.parsed:
            for child in token.children or ():
                if child.type == "softbreak":  # what models write on a line of its own is meant to stand there
                    child.type = "hardbreak"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._markdown, options.update(height=None), pad=False)
        filled = [at for at, line in enumerate(lines) if any(segment.text.strip() for segment in line)]
        for line in lines[filled[0] : filled[-1] + 1] if filled else ():
            yield from line
            yield Segment.line()


class _Heading(Heading):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class _Markdown(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {**Markdown.elements, "heading_open": _Heading}


def _blocks(text: str) -> list[str]:
    """The text cut where a new block begins; what is no block itself belongs to the one before."""
    lines = text.splitlines(keepends=True)
    starts = [token.map[0] for token in _parser().parse(text) if token.level == 0 and token.map is not None]
    ends = [*starts[1:], len(lines)]
    return ["".join(lines[start:end]) for start, end in zip([0, *starts[1:]], ends, strict=False)]


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False})
    return parser.enable(["strikethrough", "table"]).disable(["image", "reference"])
