"""smolagents' CodeAgent on the embedded model, which writes code and fails at it: use a Qwen of 7B or more for this.

python examples/smolagents_code_agent.py      (pip install 'qwen-react-agent[smolagents]')
"""

from __future__ import annotations

from smolagents import ActionStep, CodeAgent, tool

from qwen_agent.hf_agent_adapter import QwenModel


@tool
def get_weather(city: str) -> str:
    """Get the current weather of a city.

    Args:
        city: the name of the city
    """
    return f"18 degrees and light rain in {city}"


def main() -> None:
    # Thought and code fit the schema, because a grammar holds them to it; what the code says is the model's.
    model = QwenModel(max_new_tokens=120)
    coder = CodeAgent([get_weather], model, verbosity_level=0, use_structured_outputs_internally=True)
    steps = coder.run("Compute the sum of the squares of 1 to 10.", stream=True)
    first = next(step for step in steps if isinstance(step, ActionStep))
    print("CodeAgent wrote:", first.model_output)
    print("and failed:", first.error.message if first.error else first.observations)


if __name__ == "__main__":
    main()
