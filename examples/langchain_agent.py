"""LangChain's agent on the embedded model: a LangChain tool, one of ours, and an object as the answer.

pip install -c constraints.txt '.[langchain]' langchain && python examples/langchain_agent.py
"""

from __future__ import annotations

from pathlib import Path

from langchain.agents import create_agent
from langchain_core.tools import tool
from pydantic import BaseModel

from qwen_agent.langchain_adapter import ChatQwenAgent, to_langchain
from qwen_agent.tools import search_documents


class Weather(BaseModel):
    """The weather of a city."""

    city: str
    degrees: int


@tool
def get_current_weather(location: str) -> str:
    """Get the current weather of a city."""
    return f"{location}: 18 degrees, light rain"


def main() -> None:
    model = ChatQwenAgent(model="embedded", max_tokens=128)
    search = to_langchain(search_documents(Path(__file__).parent / "docs", results=1, chars=120))
    agent = create_agent(model, [get_current_weather, search], response_format=Weather)
    question = {"messages": [("user", "What's the weather like in Oslo right now?")]}
    for state in agent.stream(question, stream_mode="values"):
        message = state["messages"][-1]
        calls = [f"{call['name']}({call['args']})" for call in getattr(message, "tool_calls", [])]
        print(f"{message.type}: {' '.join(calls) or message.text}")
    print(repr(state["structured_response"]))


if __name__ == "__main__":
    main()
