"""Tools by others: installed packages that offer some, and functions described in the formats of others.

A package offers tools through the entry-point group ``qwen_agent.tools``:

    [project.entry-points."qwen_agent.tools"]
    weather = "weather_package.tools:forecast"

where the entry point is a Tool, a sequence of Tools, or a function without parameters that returns either.

Promises
- nothing_runs_unasked: listing what is installed imports none of it; only what is asked for by name is loaded.
- a_broken_plugin_is_only_skipped: whatever it does while it is loaded becomes one sentence with its name.

Not promised
- A plugin is code like any other: loaded, it has all rights of this process.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qwen_agent.errors import InputError
from qwen_agent.tools.base import Tool

GROUP = "qwen_agent.tools"
ALL = "all"
_MAX_REASON = 200  # characters


@dataclass(frozen=True, slots=True)
class Plugins:
    """What was loaded: the tools, and for each plugin or tool that was left out a sentence that says why."""

    tools: tuple[Tool, ...]
    problems: tuple[str, ...]


def installed() -> dict[str, str]:
    """The plugins that are installed, by name, with the package each comes from. Nothing of them is imported."""
    return {point.name: point.dist.name if point.dist else "unknown" for point in _entry_points()}


def load_plugins(names: Iterable[str], *, taken: Collection[str] = ()) -> Plugins:
    """Load the plugins of these names; "all" stands for every one that is installed.

    A tool whose name is in ``taken``, or that an earlier plugin has, is left out. Raises InputError for a name under
    which nothing is installed.
    """
    points = {point.name: point for point in _entry_points()}
    wanted = list(dict.fromkeys(names))
    if ALL in wanted:
        wanted = list(points)
    unknown = [name for name in wanted if name not in points]
    if unknown:
        has = f"installed are {', '.join(points)}" if points else "none is installed"
        raise InputError(f"there is no plugin {unknown[0]!r}: {has}")
    tools: dict[str, Tool] = {}
    problems: list[str] = []
    for name in wanted:
        try:
            made = _tools(points[name].load())
        except (Exception, SystemExit) as error:  # a border: this is the code of others
            problems.append(f"the plugin {name!r} is left out: {_reason(error)}")
            continue
        for tool in made:
            if tool.name in tools or tool.name in taken:
                problems.append(f"the tool {tool.name!r} of the plugin {name!r} is left out: there is one of that name")
            else:
                tools[tool.name] = tool
    return Plugins(tuple(tools.values()), tuple(problems))


def from_qwen_plugin(
    spec: Mapping[str, Any], function: Callable[..., Any], *, untrusted: bool = False, side_effects: bool = False
) -> Tool:
    """A tool from Qwen's plugin description of 2023, whose prompt text is the original's to the byte.

    ``spec`` has ``name_for_model``, ``name_for_human``, ``description_for_model`` and ``parameters``, a list of
    {name, description, required, schema}. ``function`` takes the parameters as keyword arguments; what it reads and
    changes is declared as for any tool. Raises InputError, naming what is wrong.
    """
    name = _text(spec, "name_for_model", "a Qwen plugin")
    listed = spec.get("parameters", [])
    if not isinstance(listed, (list, tuple)):
        raise InputError(f"plugin {name}: 'parameters' must be a list of parameters, not {type(listed).__name__}")
    properties: dict[str, Any] = {}
    required: list[str] = []
    for entry in listed:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            raise InputError(f"plugin {name}: {entry!r} is no parameter: it needs name, description, required, schema")
        if entry["name"] in properties:
            raise InputError(f"plugin {name}: two parameters are called {entry['name']!r}")
        properties[entry["name"]] = _schema(name, entry)
        required += [entry["name"]] if entry.get("required") else []
    return Tool(
        name=name,
        name_for_human=str(spec.get("name_for_human", "")),
        description=str(spec.get("description_for_model") or spec.get("description", "")),
        parameters={"type": "object", "properties": properties, "required": required},
        function=function,
        args_format="code" if "backtick" in str(spec.get("args_format", "")) else "json",
        untrusted=untrusted,
        side_effects=side_effects,
    )


def from_openai_function(
    spec: Mapping[str, Any], function: Callable[..., Any], *, untrusted: bool = False, side_effects: bool = False
) -> Tool:
    """A tool from OpenAI's function JSON: {"type": "function", "function": {...}}, or the inner object alone.

    ``parameters`` is a JSON Schema and is kept as it is; ``strict`` changes nothing here, since arguments are always
    checked. Raises InputError, naming what is wrong.
    """
    if spec.get("type", "function") != "function":
        raise InputError(f"a tool of the type {spec['type']!r} cannot be used: only 'function' can")
    inner = spec.get("function", spec)
    if not isinstance(inner, Mapping):
        raise InputError(f"'function' must be an object with name, description and parameters, not {inner!r}")
    return Tool(
        name=_text(inner, "name", "a function"),
        description=str(inner.get("description") or ""),
        parameters=inner.get("parameters") or {"type": "object", "properties": {}},
        function=function,
        untrusted=untrusted,
        side_effects=side_effects,
    )


def from_langchain(tool: Any, *, untrusted: bool = True, side_effects: bool = True) -> Tool:
    """A LangChain tool (``BaseTool``) as one of ours. Its errors become failed results; LangChain is not imported.

    Arguments are checked against the tool's own schema, and by LangChain once more. Nothing is known about what it
    reads and changes, so the worst is assumed unless you say otherwise. Raises InputError for what is no such tool.
    """
    invoke, schema = getattr(tool, "invoke", None), getattr(tool, "tool_call_schema", None)
    if not callable(invoke) or schema is None or not hasattr(tool, "name"):
        raise InputError(f"{tool!r} is no LangChain tool: it needs name, tool_call_schema and invoke")
    return Tool(
        name=tool.name,
        description=str(tool.description or ""),
        parameters=schema if isinstance(schema, dict) else schema.model_json_schema(),
        function=lambda **arguments: invoke(arguments),
        untrusted=untrusted,
        side_effects=side_effects,
    )


def from_smolagents(tool: Any, *, untrusted: bool = True, side_effects: bool = True) -> Tool:
    """A smolagents tool (``Tool``, ``@tool``) as one of ours (see `from_langchain`). Nullable inputs are optional."""
    inputs = getattr(tool, "inputs", None)
    if not callable(tool) or not isinstance(inputs, Mapping) or not hasattr(tool, "name"):
        raise InputError(f"{tool!r} is no smolagents tool: it needs name, inputs and to be callable")
    properties = {name: _smolagents_schema(entry) for name, entry in inputs.items()}
    required = [name for name, entry in inputs.items() if not entry.get("nullable")]
    return Tool(
        name=tool.name,
        description=str(tool.description or ""),
        parameters={"type": "object", "properties": properties, "required": required},
        function=lambda **arguments: tool(**arguments),
        untrusted=untrusted,
        side_effects=side_effects,
    )


def _smolagents_schema(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An input's JSON Schema. Pictures and sounds come as text (a path, a URL); "any" says nothing about the type."""
    kinds = {"any": None, "image": "string", "audio": "string"}
    kind = entry.get("type", "any")
    kind = kinds.get(kind, kind) if isinstance(kind, str) else kind
    plain = {key: value for key, value in entry.items() if key not in ("type", "nullable")}
    return plain if kind is None else {**plain, "type": kind}


def _entry_points() -> Iterable[importlib.metadata.EntryPoint]:
    return sorted(importlib.metadata.entry_points(group=GROUP), key=lambda point: point.name)


def _tools(offered: Any) -> tuple[Tool, ...]:
    if callable(offered) and not isinstance(offered, Tool):
        offered = offered()
    made = (offered,) if isinstance(offered, Tool) else offered
    if not isinstance(made, (list, tuple)) or not all(isinstance(tool, Tool) for tool in made):
        raise InputError(f"it offers {made!r}, which is neither a Tool nor a sequence of Tools")
    return tuple(made)


def _reason(error: BaseException) -> str:
    line = " ".join(str(error).split())[:_MAX_REASON]
    return line if isinstance(error, InputError) else f"{type(error).__name__}: {line}".rstrip(": ")


def _text(spec: Mapping[str, Any], key: str, what: str) -> str:
    value = spec.get(key) if isinstance(spec, Mapping) else None
    if not isinstance(value, str) or not value:
        raise InputError(f"{what} needs {key!r}, a string; {value!r} was given")
    return value


def _schema(plugin: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's schema with its description; the newer spelling has ``type`` where ``schema`` was."""
    schema = entry.get("schema", {key: entry[key] for key in ("type", "enum", "items") if key in entry})
    if not isinstance(schema, Mapping):
        raise InputError(f"plugin {plugin}: the schema of {entry['name']!r} must be an object, not {schema!r}")
    described = {"description": entry["description"]} if entry.get("description") else {}
    return {**schema, **described}
