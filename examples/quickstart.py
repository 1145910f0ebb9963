"""An agent with a tool of your own and two built-in ones, on the embedded model. No download, no GPU.

python examples/quickstart.py
"""

from __future__ import annotations

from pathlib import Path

from qwen_agent import Agent, load_runtime, tool
from qwen_agent.tools import calculator, search_documents


@tool
def get_current_weather(location: str) -> dict[str, object]:
    """Get the current weather of a city.

    Args:
        location: City name
    """
    return {"location": location, "temperature_c": 18, "condition": "light rain"}


def main() -> None:
    search = search_documents(Path(__file__).parent / "docs", results=1, chars=120)
    agent = Agent(load_runtime("embedded"), tools=[get_current_weather, search, calculator])
    for question in ("What's the weather like in Oslo right now?", "How tall is the Eiffel Tower multiplied by 3?"):
        result = agent.run(question)
        calls = [f"{step.call.name}({step.call.raw})" for step in result.steps if step.call]
        print(f"{question}\n  {' -> '.join(calls)}\n  {result.answer}  [{result.stop_reason.value}]")


if __name__ == "__main__":
    main()
