"""The agents of the command line: built from its options, or again from the description in a log."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_agent.display import loading
from qwen_agent.errors import InputError

if TYPE_CHECKING:
    from qwen_agent.llm.local import LocalRuntime
    from qwen_agent.react import Agent
    from qwen_agent.tools.base import Tool

TOOL_NAMES = ("calculator", "search", "code_interpreter")


def build_agent(
    *,
    quiet: bool,
    model: str,
    device: str | None,
    dtype: str | None,
    offline: bool,
    tool_names: str | None,
    docs: Path | None,
    ask: Sequence[str],
    deny: Sequence[str],
    max_steps: int,
    max_tool_calls: int | None,
    max_seconds: float | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    system: str | None,
) -> Agent:
    """The agent that the options ask for. Raises InputError for options that do not fit each other."""
    # Tools first: a wrong name or folder should not wait for a model to load.
    chosen = {name: builtin_tool(name, docs, brief=model == "embedded") for name in _chosen_names(tool_names, docs)}
    for name in (*ask, *deny):
        if name not in chosen:
            raise InputError(f"{name!r} cannot be asked about or denied: the tools are {', '.join(chosen) or 'none'}")
        chosen[name] = replace(chosen[name], approval="deny" if name in deny else "ask")
    from qwen_agent.limits import Limits
    from qwen_agent.llm.config import GenerationConfig
    from qwen_agent.prompt import DEFAULT_SYSTEM
    from qwen_agent.react import Agent

    return Agent(
        _load(model, device=device, dtype=dtype, offline=offline, quiet=quiet),
        chosen,
        system=system or DEFAULT_SYSTEM,
        generation=GenerationConfig(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed),
        limits=Limits(steps=max_steps, tool_calls=max_tool_calls, seconds=max_seconds),
    )


def rebuild_agent(
    described: Mapping[str, Any],
    *,
    quiet: bool,
    model: str | None,
    device: str | None,
    dtype: str | None,
    offline: bool,
    docs: Path | None,
) -> Agent:
    """The agent of a log. What its description does not hold (``docs``) has to be given again.

    Raises InputError if it has tools that are not built in, or answers of a type of the user's.
    """
    from qwen_agent.records.described import described_options

    options = described_options(described)
    if described["output_schema"] is not None:
        raise InputError("this run's answer has a type of its own: go on with it from Python, with Agent.resume")
    chosen = model or described["model"]
    tools = [_tool_again(tool, docs, brief=chosen == "embedded") for tool in described["tools"]]
    from qwen_agent.react import Agent

    return Agent(_load(chosen, device=device, dtype=dtype, offline=offline, quiet=quiet), tools, **options)


def builtin_tool(name: str, docs: Path | None, *, brief: bool = False) -> Tool:
    """A built-in tool by name. ``brief`` is for the embedded model, which reads one short passage better than three."""
    if name == "calculator":
        from qwen_agent.tools.calculator import calculator

        return calculator
    if name == "search":
        from qwen_agent.tools.search import search_documents

        if docs is None:
            raise InputError("search needs a folder of documents: add --docs DIR")
        return search_documents(docs, results=1, chars=120) if brief else search_documents(docs)
    from qwen_agent.tools.code_interpreter import code_interpreter

    return code_interpreter()


def _tool_again(described: Mapping[str, Any], docs: Path | None, *, brief: bool) -> Tool:
    name = described["name"]
    if name not in TOOL_NAMES:
        raise InputError(f"this run has the tool {name!r}, which is not built in: go on with it from Python")
    return replace(builtin_tool(name, docs, brief=brief), approval=described["approval"])


def _chosen_names(asked: str | None, docs: Path | None) -> list[str]:
    if asked is None:
        return ["search", "calculator"] if docs is not None else ["calculator"]
    names = [name.strip() for name in asked.split(",") if name.strip()]
    if names == ["none"]:
        return []
    for name in names:
        if name not in TOOL_NAMES:
            raise InputError(f"there is no tool {name!r}: choose from {', '.join(TOOL_NAMES)}, or 'none'")
    return list(dict.fromkeys(names))


def _load(model: str, *, device: str | None, dtype: str | None, offline: bool, quiet: bool) -> LocalRuntime:
    with loading(model, quiet=quiet) as progress:
        with _interrupted_later():
            from qwen_agent.llm.local import load_runtime

        return load_runtime(model, device=device, dtype=dtype, offline=offline, progress=progress)


@contextlib.contextmanager
def _interrupted_later() -> Iterator[None]:
    """Put Ctrl-C off to the end: while torch is imported, it is swallowed and leaves half a numpy behind."""
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
