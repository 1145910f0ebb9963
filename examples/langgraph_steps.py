"""A LangGraph of one's own on the embedded model: a model node, a tool node, a memory that survives between questions.

pip install -c constraints.txt '.[langchain]' langgraph && python examples/langgraph_steps.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from qwen_agent.langchain_adapter import ChatQwenAgent, to_langchain
from qwen_agent.tools import calculator, search_documents

QUESTIONS = (
    "How tall is the Eiffel Tower multiplied by 3?",
    "How much higher is Mount Everest than the Eiffel Tower, in metres?",
)


def main() -> None:
    search = search_documents(Path(__file__).parent / "docs", results=1, chars=120)
    tools = [to_langchain(tool) for tool in (search, calculator)]
    model = ChatQwenAgent(model="embedded", max_tokens=128).bind_tools(tools)

    def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("think", think)
    builder.add_node("tools", ToolNode(tools))
    builder.add_edge(START, "think")
    builder.add_conditional_edges("think", tools_condition)
    builder.add_edge("tools", "think")
    graph = builder.compile(checkpointer=InMemorySaver())

    config = {"configurable": {"thread_id": "1"}, "recursion_limit": 24}
    for question in QUESTIONS:
        for state in graph.stream({"messages": [("user", question)]}, config, stream_mode="values"):
            message = state["messages"][-1]
            calls = [f"{call['name']}({call['args']})" for call in getattr(message, "tool_calls", [])]
            print(f"{message.type}: {' '.join(calls) or message.text}")


if __name__ == "__main__":
    main()
