"""smolagents' ToolCallingAgent on the embedded model, with one of our tools and one of theirs.

python examples/smolagents_agents.py      (pip install 'qwen-react-agent[smolagents]')
"""

from __future__ import annotations

from smolagents import ToolCallingAgent, tool

from qwen_agent.hf_agent_adapter import QwenModel, to_smolagents
from qwen_agent.tools import calculator


@tool
def get_weather(city: str) -> str:
    """Get the current weather of a city.

    Args:
        city: the name of the city
    """
    return f"18 degrees and light rain in {city}"


def main() -> None:
    model = QwenModel(max_new_tokens=120)
    agent = ToolCallingAgent([to_smolagents(calculator), get_weather], model, max_steps=4, verbosity_level=0)
    print("ToolCallingAgent:", agent.run("What is 37 * 43 + 12?"))
    for step in agent.memory.steps[1:]:
        print("  ", step.tool_calls[0].name, step.tool_calls[0].arguments)


if __name__ == "__main__":
    main()
