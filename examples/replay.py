"""One log, three uses: break a run off and go on with it, repeat it without the model, see where another agent parts.

python examples/replay.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from qwen_agent import Agent, load_runtime
from qwen_agent.records.log import RunLog, read_log
from qwen_agent.records.replay import replay
from qwen_agent.tools import calculator
from qwen_agent.types import Finished, ToolFinished


def main(path: Path) -> None:
    agent = Agent(load_runtime("embedded"), tools=[calculator])
    with RunLog(path) as log:
        for event in log.record(agent.stream("What is 12 * 12?")):
            if isinstance(event, ToolFinished):
                print(f"[broken off after {event.call.name} said {event.result.content}]")
                break

    with RunLog.resumed(path) as log:  # in another process, too, and after a crash
        for event in log.record(agent.resume(log.facts)):
            if isinstance(event, Finished):
                print(f"{event.result.answer}  [{event.result.stop_reason.value}]")

    whole = read_log(path)
    print(replay(whole).report())
    print(replay(whole, replace(agent, system="You are a terse assistant.")).report())


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        main(Path(folder) / "run.jsonl")
