"""Conversations in nobody's format: what LangChain's messages and OpenAI's have in common.

Messages become turns, turns and tools a prompt with what may be written after it, and the model's text events. Who
speaks a format of others translates types, and knows nothing of ReAct.
"""
