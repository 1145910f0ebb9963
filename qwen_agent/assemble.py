"""The tools and agents of the command line: built from its options, or again from the description in a log."""

from __future__ import annotations

import contextlib
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qwen_agent.errors import InputError, ModelNotFound
from qwen_agent.terminal.loading import loading

if TYPE_CHECKING:
    from qwen_agent.llm.local import LocalRuntime
    from qwen_agent.llm.remote import OpenAIRuntime
    from qwen_agent.llm.runtime import Runtime
    from qwen_agent.react import Agent
    from qwen_agent.tools.base import Tool
    from qwen_agent.tools.catalog import Settings

_FILES = ("list_files", "read_file", "write_file")  # the tools of the entry "files"
_APPROVALS = ("auto", "ask", "deny")  # from the freest to the strictest


@dataclass(frozen=True, slots=True)
class Sources:
    """Where tools come from: the built-in ones with their settings, plugins by name, MCP servers by address.

    Connections are closed with ``stack``; ``warn`` is told what was left out or is dangerous.
    """

    settings: Settings
    plugins: str
    mcp_servers: Sequence[str]
    stack: ExitStack
    warn: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """An OpenAI-compatible endpoint that serves the model, with the key that it wants, if any."""

    url: str
    key: str | None = field(default=None, repr=False)


def build_tools(sources: Sources, *, tool_names: str | None, ask: Sequence[str], deny: Sequence[str]) -> list[Tool]:
    """The tools that the options ask for. Raises InputError for options that do not fit each other."""
    chosen = {tool.name: tool for tool in _built_in(_chosen_names(tool_names, sources.settings.docs), sources)}
    chosen |= _others(sources, chosen)
    for name in (*ask, *deny):
        if name not in chosen:
            raise InputError(f"{name!r} cannot be asked about or denied: the tools are {', '.join(chosen) or 'none'}")
        chosen[name] = replace(chosen[name], approval="deny" if name in deny else "ask")
    return list(chosen.values())


def build_agent(
    tools: Sequence[Tool],
    *,
    quiet: bool,
    model: str,
    device: str | None,
    dtype: str | None,
    kv_cache: str | None,
    offline: bool,
    max_steps: int,
    max_tool_calls: int | None,
    max_seconds: float | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    system: str | None,
    elsewhere: Elsewhere | None = None,
) -> Agent:
    """The agent that the options ask for, with these tools."""
    runtime: Runtime
    if elsewhere is not None:
        runtime = reach(elsewhere, model, quiet=quiet)
    else:
        runtime = load(model, device=device, dtype=dtype, kv_cache=kv_cache, offline=offline, quiet=quiet)
    return agent_over(
        runtime,
        tools,
        max_steps=max_steps,
        max_tool_calls=max_tool_calls,
        max_seconds=max_seconds,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        system=system,
    )


def agent_over(
    runtime: Runtime,
    tools: Sequence[Tool],
    *,
    max_steps: int,
    max_tool_calls: int | None,
    max_seconds: float | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    system: str | None,
) -> Agent:
    """The agent that the options ask for, with these tools, on a model that is loaded."""
    from qwen_agent.limits import Limits
    from qwen_agent.llm.config import GenerationConfig
    from qwen_agent.prompt import DEFAULT_SYSTEM
    from qwen_agent.react import Agent

    return Agent(
        runtime,
        tools,
        system=system or DEFAULT_SYSTEM,
        generation=GenerationConfig(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed),
        limits=Limits(steps=max_steps, tool_calls=max_tool_calls, seconds=max_seconds),
    )


def rebuild_agent(
    described: Mapping[str, Any],
    sources: Sources,
    *,
    quiet: bool,
    model: str,
    device: str | None,
    dtype: str | None,
    kv_cache: str | None,
    offline: bool,
    elsewhere: Elsewhere | None = None,
) -> Agent:
    """The agent of a log. What its description does not hold (``sources``) has to be given again.

    Raises InputError if it has tools that are not found there, or answers of a type of the user's.
    """
    from qwen_agent.records.described import described_options

    options = described_options(described)
    if described["output_schema"] is not None:
        raise InputError("this run's answer has a type of its own: go on with it from Python, with Agent.resume")
    tools = rebuild_tools(described["tools"], sources)
    from qwen_agent.react import Agent

    runtime: Runtime
    if elsewhere is not None:
        runtime = reach(elsewhere, model, quiet=quiet)
    else:
        runtime = load(model, device=device, dtype=dtype, kv_cache=kv_cache, offline=offline, quiet=quiet)
    return Agent(runtime, tools, **options)


def rebuild_tools(described: Sequence[Mapping[str, Any]], sources: Sources) -> list[Tool]:
    """The tools of a log; each needs approval as it did there, or as it does now where that is stricter."""
    from qwen_agent.tools.catalog import catalog

    others = _others(sources, ())
    # A server may have a tool called like one of ours.
    theirs = {tool["name"] for tool in described if _same(others.get(tool["name"]), tool)}
    entries = {tool["name"]: _entry(tool["name"]) for tool in described if tool["name"] not in theirs}
    built_in = _built_in([entry for entry in dict.fromkeys(entries.values()) if entry in catalog()], sources)
    found = {**others, **{tool.name: tool for tool in built_in if tool.name not in theirs}}
    return [_approved_as(found, tool) for tool in described]


def _same(tool: Tool | None, described: Mapping[str, Any]) -> bool:
    return tool is not None and tool.description == described["description"]


def _entry(tool: str) -> str:
    """The name in the catalog of what makes this tool, if it is a built-in one."""
    return "files" if tool in _FILES else tool


def _approved_as(found: Mapping[str, Tool], described: Mapping[str, Any]) -> Tool:
    name = described["name"]
    if name not in found and name in _FILES:
        raise InputError(f"this run has the tool {name!r}: add --write")
    if name not in found:
        raise InputError(
            f"this run has the tool {name!r}, which is not built in: add its --plugins or --mcp again, "
            f"or go on with it from Python"
        )
    tool = found[name]
    return replace(tool, approval=max(tool.approval, described["approval"], key=_APPROVALS.index))


def _built_in(names: Sequence[str], sources: Sources) -> tuple[Tool, ...]:
    from qwen_agent.tools import catalog

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        tools = catalog.build_tools(names, sources.settings)
    for warning in caught:
        sources.warn(str(warning.message))
    return tools


def _others(sources: Sources, taken: Sequence[str] | Mapping[str, Tool]) -> dict[str, Tool]:
    """The tools of plugins and MCP servers; of two with one name the later is left out."""
    found: dict[str, Tool] = {}
    if plugins := _listed(sources.plugins):
        from qwen_agent.tools.plugins import load_plugins

        loaded = load_plugins(plugins, taken=taken)
        found.update((tool.name, tool) for tool in loaded.tools)
        for problem in loaded.problems:
            sources.warn(problem)
    for address in sources.mcp_servers:
        from qwen_agent.tools.artifacts import ArtifactStore
        from qwen_agent.tools.mcp import mcp_tools, server_from

        folder = sources.settings.artifacts
        store = None if folder is None else ArtifactStore(folder)
        server = sources.stack.enter_context(mcp_tools(server_from(address), store=store))
        for problem in server.warnings:
            sources.warn(problem)
        for tool in server.tools:
            if tool.name in found or tool.name in taken:
                sources.warn(f"the tool {tool.name!r} of '{server.name}' is left out: there is one of that name")
            else:
                found[tool.name] = tool
    return found


def _chosen_names(asked: str | None, docs: Path | None) -> list[str]:
    if asked is None:
        return ["search", "calculator"] if docs is not None else ["calculator"]
    names = _listed(asked)
    return [] if names == ["none"] else names


def _listed(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def reach(elsewhere: Elsewhere, model: str, *, quiet: bool) -> OpenAIRuntime:
    """The model of that name at an endpoint; for "embedded", which nobody has to ask for, also the only one there."""
    from qwen_agent.llm.remote import OpenAIRuntime

    with loading(elsewhere.url, quiet=quiet):
        try:
            runtime = OpenAIRuntime(elsewhere.url, model, api_key=elsewhere.key)
        except ModelNotFound:
            if model != "embedded":
                raise
            runtime = OpenAIRuntime(elsewhere.url, api_key=elsewhere.key)
    if not quiet:
        click.secho(runtime.served, dim=True, err=True)
    return runtime


def load(
    model: str,
    *,
    device: str | None,
    dtype: str | None,
    kv_cache: str | None,
    offline: bool,
    quiet: bool,
    kept_caches: int = 2,
) -> LocalRuntime:
    """The model, with a sign on the terminal while it is loaded unless ``quiet``."""
    with loading(model, quiet=quiet) as progress:
        with _interrupted_later():
            from qwen_agent.llm.local import load_runtime

        return load_runtime(
            model,
            device=device,
            dtype=dtype,
            kv_cache=kv_cache,
            offline=offline,
            kept_caches=kept_caches,
            progress=progress,
        )


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
