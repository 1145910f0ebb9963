"""A grammar for what a model writes in Transformers Agents: tools that there are, called with the inputs they have.

Not the whole language of `interpreter`: up to four assignments of a call, whose inputs may be calls. For models that do
not keep to the prompt.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from qwen_agent.errors import InputError
from qwen_agent.llm.grammar import Grammar

RESULTS = ("answer", "text", "image", "audio", "video", "summary", "result")  # what a line may assign to

_COMMA = '", "'
_BEGUN = {"run": '" tool" "s"? ":" uses ".\\n\\nAnswer:\\n"', "chat": '"I will use the tool" "s"? uses ".\\n\\n"'}
_CODE = r"""
uses: use ("," use)? (" and" use)?
use: " `" tool "` to " /[a-z][a-z ]{3,60}/
code: "```py\n" line line? line? line? "```"
line: result " = " call "\n"
value: atom | inner
atom: name | STRING | NUMBER | "[" STRING (", " STRING)* "]"
STRING: /"[^"\\\n]{0,80}"/
NUMBER: /[0-9]{1,6}/
"""


def code_grammar(
    form: Literal["run", "chat"], tools: Mapping[str, Callable[..., Any]], variables: Iterable[str]
) -> Grammar:
    """An explanation that names tools, and the code, as the prompts of ``run`` and ``chat`` show them.

    Raises InputError without tools.
    """
    if not tools:
        raise InputError("there are no tools that the code could call: give the agent some")
    rules = (
        f"start: {_BEGUN[form]} code",
        f"tool: {_one_of(tools)}",
        f"result: {_one_of(RESULTS)}",
        f"name: {_one_of(dict.fromkeys((*variables, *RESULTS)))}",
        f"call: {' | '.join(_call(name, tool, 'value') for name, tool in tools.items())}",
        f"inner: {' | '.join(_call(name, tool, 'atom') for name, tool in tools.items())}",
    )
    return Grammar("\n".join(rules) + _CODE)


def _one_of(words: Iterable[str]) -> str:
    return " | ".join(map(json.dumps, words))


def _call(name: str, tool: Callable[..., Any], kind: str) -> str:
    """A call with the inputs that are required, the first ones by place and the others by name; perhaps one more."""
    inputs = _inputs(tool)
    if inputs is None:
        return f'{json.dumps(f"{name}(")} ({kind} ({_COMMA} {kind})*)? ")"'
    named = {each: f"{json.dumps(f'{each}=')} {kind}" for each in inputs}
    needed = [named[each] for each, required in inputs.items() if required]
    more = " | ".join(named[each] for each, required in inputs.items() if not required)
    forms = " | ".join(f" {_COMMA} ".join([kind] * n + needed[n:]) for n in range(len(needed) + 1)) if needed else '""'
    optional = "" if not more else f"({_COMMA} ({more}))?" if needed else f"({more})?"
    return f'{json.dumps(f"{name}(")} ({forms}) {optional} ")"'


def _inputs(tool: Any) -> dict[str, bool] | None:
    """The names of a tool's inputs, and whether each is required: ours, smolagents', or a function's.

    None where nothing is known of them.
    """
    if isinstance(schema := getattr(tool, "parameters", None), Mapping):
        return {name: name in schema.get("required", ()) for name in schema.get("properties", {})}
    if isinstance(inputs := getattr(tool, "inputs", None), Mapping):
        return {name: not entry.get("nullable") for name, entry in inputs.items()}
    parameters = inspect.signature(tool).parameters.values()
    if any(each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in parameters):
        return None
    return {each.name: each.default is each.empty for each in parameters}
