"""A runtime that answers by rules, at the pace of a person: what the page shows can then be waited for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import Chunk, text_of
from qwen_agent.llm.stopping import StopStrings
from qwen_agent.tools.artifacts import ArtifactStore
from qwen_agent.tools.base import Tool, ToolOutput, tool
from qwen_agent.tools.calculator import calculator
from qwen_agent.tools.files import file_tools
from qwen_agent.types import Prompt, Text, Usage
from qwen_agent.web.conversation import Place

HOSTILE = (
    "<script>window.pwned=1</script><img src=x onerror='window.pwned=2'><style>body{display:none}</style>"
    "<iframe src='https://example.com'></iframe> ![p](https://example.com/p.png) [l](javascript:window.pwned=3)"
    "\n\n```html\n<b>kept as code</b>\n```\n\n`<i>` and $$x^2$$"
)
STEPS = {
    "15%": ['I should compute this.\nAction: calculator\nAction Input: {"expression": "2340 * 0.15"}\n', "351"],
    "hostile": [HOSTILE],
    "long": ["word " * 400],
    "table.csv": [
        'I should read the file.\nAction: read_file\nAction Input: {"path": "table.csv"}\n',
        "The table has **two** rows: apples and pears.",
    ],
    "write": [
        "I should write it down.\nAction: write_file\nAction Input: "
        '{"path": "note.txt", "content": "Buy milk\\nBuy bread\\n"}\n',
        "That is done.",
    ],
    "draw": ["I should draw it.\nAction: draw\nAction Input: {}\n", "Here is the picture."],
    "fail": ["I should try.\nAction: failing\nAction Input: {}\n", "It did not work."],
    "boom": [],
}
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000600000004008020000006a56e5590000011e4944415478daeddbd10dc2300c"
    "84616a75369e61133640dd804d988a3d98a048b4f6d94efebc22c5c7a76b5444bbdcae9f0b6b7f19040001041040000134ea"
    "5a2b8478bfb6bd8fee8f676eb625eb46f1074a29ac04a00334894c52a09334294cd651c77db7e406857e99e82a596b1dc1fe"
    "d63abd608a75d7899e6503e8844ee4a7460690be3e71736d189da0e95c625aa0dcfa4464a04142a00af5714f42830002a807"
    "509d03c8370f0d020820800002082080003ab9d29f3208ca43830002a80d509d63c831090dd2025528916f061a2407ca2d91"
    "fb746b9132712e97581290be444113ad5d62f12c6b9a5b36c55aa717ecaf7b90dcfd8f334d3dade931213be07857a31ed061"
    "a659def6f90b6bdef7c566bf930608201640000114bfbe8b7f6647af1bb0020000000049454e44ae426082"
)  # a yellow disc on blue, 96 x 64


class Talker:
    """Says what `STEPS` has for the first key that occurs in the newest question; else it repeats the question."""

    name = "talker"

    def __init__(self, delay: float = 0.0, window: int = 6000) -> None:
        self.delay = delay
        self.window = window
        self.prompts: list[str] = []

    def stream(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        text = text_of(prompt)
        self.prompts.append(text)
        stops = StopStrings(config.stop)
        shown, total = "", self.count_tokens(prompt)
        yield Chunk(read=(total // 2, total))
        for letter in self._next(text):
            time.sleep(self.delay)
            piece = stops.feed(letter)
            shown += piece
            yield Chunk(text=piece)
            if stops.matched:
                break
        tail = "" if stops.matched else stops.flush()
        usage = Usage(total, 0, len(shown.split()))
        yield Chunk(tail, finish="stop", stop=stops.matched, output=(Text(shown + tail),), usage=usage)

    def score(self, prompt: Prompt, choices: Sequence[Prompt]) -> list[float]:
        return [0.0] * len(choices)

    def count_tokens(self, prompt: Prompt) -> int:
        return len(text_of(prompt).split())

    def _next(self, text: str) -> str:
        asked, _, turn = text.rpartition("\nassistant\n")
        asked = asked.rpartition("\nuser\n")[2].rpartition("Question: ")[2].strip()
        if "boom" in asked:
            raise RuntimeError("a secret that belongs in the log only")
        key = next((key for key in STEPS if key in asked), None)
        steps = STEPS[key] if key else [f"You said: {asked}"]
        done = turn.count("\nObservation:")
        said = steps[min(done, len(steps) - 1)]
        if "\nAction:" in said:
            return f"Thought: {said}Observation: "
        return f"Thought: I now know the final answer.\nFinal Answer: {said}"


def make_tools(place: Place) -> list[Tool]:
    store = ArtifactStore(place.artifacts)

    @tool
    def draw() -> ToolOutput:
        """Draw a picture."""
        return ToolOutput("A picture was drawn.", (store.add(PNG, "picture.png"),))

    @tool
    def failing() -> str:
        """Always fails."""
        raise ValueError("no luck")

    return [calculator, *file_tools(Path(place.files), write=True), draw, failing]
