"""LangChain and LangGraph, both ways: our models, tools and agent for them, their tools for our agent.

    from langchain.agents import create_agent
    from qwen_agent.langchain_adapter import ChatQwenAgent

    agent = create_agent(ChatQwenAgent(model="embedded"), tools=[...])

Messages become the project's own ReAct prompt, and what the model writes becomes a message again: its thought is the
message's reasoning, its final answer the content, its action a tool call.

Promises
- calls_are_valid_by_construction: with a runtime that can constrain, every tool call names a bound tool and fits its
  schema, and structured output fits its schema.
- a_broken_call_is_never_run: what was cut off, or cannot be read, is an invalid tool call, streamed or not.
- nothing_is_dropped: a picture, a file, a sound, a call without its result is an error that names it.
- the_event_loop_is_free: async generation runs in a thread; cancelling the task stops it at the next token.

Not promised
- Parallel calls: ReAct has one action per step, so a message has one call at most. Messages by others may hold more;
  the model is shown them one after the other.

Needs the extra ``langchain``: without it this raises MissingDependency, and nothing else is imported.
"""

from __future__ import annotations

from qwen_agent.errors import MissingDependency

try:
    import langchain_core  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "langchain_core":  # it is installed, and lacks something itself
        raise
    raise MissingDependency("langchain-core", "langchain") from None

from qwen_agent.langchain_adapter.chat_model import ChatQwenAgent
from qwen_agent.langchain_adapter.completion import QwenAgentLLM
from qwen_agent.langchain_adapter.runnable import agent_runnable
from qwen_agent.langchain_adapter.settings import PromptTooLong
from qwen_agent.langchain_adapter.tools import QwenAgentTool, from_langchain, to_langchain

__all__ = [
    "ChatQwenAgent",
    "PromptTooLong",
    "QwenAgentLLM",
    "QwenAgentTool",
    "agent_runnable",
    "from_langchain",
    "to_langchain",
]
