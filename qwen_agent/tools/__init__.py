"""What a model can call: a function with a name, a description and a JSON Schema.

Importing this stays cheap (the standard library only). The two tools are imported here rather than on first use,
because `calculator` is also the name of its module: whoever comes last owns the attribute, and it must be the tool.
"""

from qwen_agent.tools.base import Tool, tool, toolbox
from qwen_agent.tools.calculator import calculator
from qwen_agent.tools.search import search_documents

__all__ = ["Tool", "calculator", "search_documents", "tool", "toolbox"]
