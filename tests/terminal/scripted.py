"""`qwen-agent` with a runtime that says what a file tells it to: for tests that drive a real terminal.

    python scripted.py SCRIPT.json [command and options of qwen-agent ...]

The script is ``{"outputs": [...], "delay": seconds per letter}``. Each generation says the next output (the last one
again and again); what it was asked is appended to SCRIPT.json.log, one JSON object a line.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qwen_agent import assemble, cli
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import Chunk, text_of
from qwen_agent.llm.stopping import StopStrings
from qwen_agent.types import Prompt, Text, Usage


class FileRuntime:
    name = "scripted"
    window = 10_000

    def __init__(self, script: Path) -> None:
        read = json.loads(script.read_text(encoding="utf-8"))
        self.outputs: list[str] = read["outputs"]
        self.delay: float = read.get("delay", 0.0)
        self.log = script.with_name(script.name + ".log")

    def stream(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        asked = {"prompt": text_of(prompt), "temperature": config.temperature, "seed": config.seed}
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asked) + "\n")
        text = self.outputs.pop(0) if len(self.outputs) > 1 else self.outputs[0]
        stops, shown = StopStrings(config.stop), ""
        for letter in text:
            time.sleep(self.delay)
            piece = stops.feed(letter)
            shown += piece
            yield Chunk(text=piece)
            if stops.matched:
                break
        tail = "" if stops.matched else stops.flush()
        usage = Usage(self.count_tokens(prompt), 0, len(text.split()))
        yield Chunk(tail, finish="stop", stop=stops.matched, output=(Text(shown + tail),), usage=usage)

    def score(self, prompt: Prompt, choices: Sequence[Prompt]) -> list[float]:
        return [0.0 for _ in choices]

    def count_tokens(self, prompt: Prompt) -> int:
        return len(text_of(prompt).split())


def load(*_: object, **__: Any) -> FileRuntime:
    return FileRuntime(Path(sys.argv[1]))


if __name__ == "__main__":
    assemble.load = load  # type: ignore[assignment]
    sys.exit(cli.main(sys.argv[2:]))
