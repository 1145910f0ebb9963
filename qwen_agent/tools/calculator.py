"""A calculator for what people and small models write: ``15% of 80``, ``2(3+4)^2``, ``$1,234.50 × 3 = ?``.

`qwen_agent.tools.expression` reads the text into Python, `ast` parses that, and the tree is evaluated here node by
node with the numbers and functions of `qwen_agent.tools.arithmetic`; nothing is ever given to ``eval``. A percentage
that is added or taken away is a part of what stands before it: ``200 + 10%`` is 220, as on a pocket calculator.

Promises: no expression takes more than about 50 ms or has a whole part of more than 400 digits.
"""

from __future__ import annotations

import ast
import bisect
import functools
import itertools

from qwen_agent.errors import ToolError
from qwen_agent.tools.arithmetic import CONSTANTS, Number, bounded, call, format_number, literal, operate, postfix
from qwen_agent.tools.base import Tool
from qwen_agent.tools.expression import MAX_DEPTH, Token, read
from qwen_agent.tools.schema import read_by_schema


def evaluate(expression: str) -> str:
    """The value of an arithmetic expression, whole where it is whole, else with 12 significant digits.

    Raises ToolError, in one sentence, for anything that cannot be read or has no real, finite value of bounded size.
    """
    tokens = read(expression)
    source = " ".join(token.python for token in tokens)
    try:
        tree = ast.parse(source, mode="eval")
    except SyntaxError as error:
        raise _unreadable(tokens, (error.offset or 1) - 1) from None
    except (MemoryError, RecursionError):
        raise ToolError("The expression is nested too deeply.") from None
    return format_number(_value(tree.body, source, 0))


def _unreadable(tokens: list[Token], column: int) -> ToolError:
    """Python's complaint about a column of the source, as a place in what the user wrote."""
    ends = list(itertools.accumulate(len(token.python) + 1 for token in tokens))
    token = tokens[min(bisect.bisect_right(ends, column), len(tokens) - 1)]
    return ToolError(f"Cannot read the expression at character {token.at + 1}, near '{token.text[:40]}'.")


def _value(node: ast.expr, source: str, depth: int) -> Number:
    """The value of a node. A long sum leans to the left, so that side is walked in a loop, not by recursion."""
    if depth > 2 * MAX_DEPTH:
        raise ToolError("The expression is nested too deeply.")
    links: list[ast.BinOp] = []
    while isinstance(node, ast.BinOp):
        links.append(node)
        node = node.left
    value = _operand(node, source, depth)
    for link in reversed(links):
        right = _value(link.right, source, depth + 1)
        if isinstance(link.op, (ast.Add, ast.Sub)) and _is_percent(link.right) and not _is_percent(link.left):
            right = bounded(operate(ast.Mult, value, right))
        value = bounded(operate(type(link.op), value, right))
    return value


def _operand(node: ast.expr, source: str, depth: int) -> Number:
    sign = 1
    while isinstance(node, ast.UnaryOp):
        sign = -sign if isinstance(node.op, ast.USub) else sign
        node = node.operand
    if isinstance(node, ast.BinOp):
        value = _value(node, source, depth + 1)
    elif isinstance(node, ast.Constant):
        value = literal(source[node.col_offset : node.end_col_offset])
    elif isinstance(node, ast.Name):
        value = CONSTANTS[node.id]
    elif isinstance(node, ast.Attribute):
        value = bounded(postfix(node.attr, _value(node.value, source, depth + 1)))
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        value = bounded(call(node.func.id, _arguments(node.args, source, depth + 1)))
    else:
        raise ToolError("Cannot read the expression: a list may only stand inside a function such as max(...).")
    return sign * value


def _arguments(nodes: list[ast.expr], source: str, depth: int) -> list[Number]:
    if len(nodes) == 1 and isinstance(nodes[0], ast.List):
        nodes = nodes[0].elts
    return [_value(node, source, depth) for node in nodes]


def _is_percent(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "percent"


_PARAMETERS = {
    "type": "object",
    "properties": {"expression": {"type": "string", "description": "for example (12.5 + 3) * 4, 15% of 80 or sqrt(2)"}},
    "required": ["expression"],
}

# Built by hand and not checked again (a test does), so that importing it needs neither pydantic nor jsonschema.
calculator = Tool(
    name="calculator",
    description="Work out an arithmetic expression exactly.",
    parameters=_PARAMETERS,
    function=evaluate,
    seconds=5.0,
    _read=functools.partial(read_by_schema, _PARAMETERS),
)
