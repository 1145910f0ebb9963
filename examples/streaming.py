"""Follow a run event by event: what is being read, thought, called and observed, as it happens.

python examples/streaming.py "What is 37 * 43 plus 12?"
"""

from __future__ import annotations

import sys

from qwen_agent import Agent, load_runtime
from qwen_agent.tools import calculator
from qwen_agent.types import Delta, Finished, Reading, ToolFinished, ToolStarted


def main(question: str) -> None:
    agent = Agent(load_runtime("embedded"), tools=[calculator])
    for event in agent.stream(question):
        match event:
            case Reading(done, total):
                print(f"[read {done} of {total} tokens]")
            case Delta(part, text):
                print(f"[{part}] {text!r}")
            case ToolStarted(call):
                print(f"[calling {call.name} with {call.arguments}]")
            case ToolFinished(_, result):
                print(f"[observed {result.content!r} in {result.seconds * 1000:.0f} ms]")
            case Finished(result):
                print(f"{result.answer}  [{result.stop_reason.value}, {result.usage.generated_tokens} tokens written]")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "What is 37 * 43 plus 12?")
