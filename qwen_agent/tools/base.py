"""A tool: a function that a model can call by name with JSON arguments.

Promises
- ``Tool.invoke`` never raises, whatever the model or the tool does, except KeyboardInterrupt.
- It returns after about ``seconds`` even when the tool hangs, and Ctrl-C gets through while it waits.
- The text it returns is at most ``max_chars`` long, and says how much was left out of the middle.

Not promised
- A tool that timed out is abandoned, not stopped: its daemon thread goes on until the tool returns.
- A tool that holds the interpreter's lock (a huge power, a catastrophic regular expression) blocks the clock too.
- Nothing here is a sandbox: the function runs in this process with all its rights.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any, Literal, overload

from qwen_agent.errors import InputError, ToolError
from qwen_agent.tools import schema
from qwen_agent.types import ToolResult

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_TICK = 0.1  # seconds; waits are cut into ticks because a long wait cannot be interrupted on Windows
_MIN_CHARS = 100  # room for the note about what was left out
_MAX_FAILURE_CHARS = 500


@dataclass(frozen=True, slots=True)
class Tool:
    """A function, and what a model needs to call it: ``name``, ``description``, ``parameters``.

    ``parameters`` is a JSON Schema of one object; ``function`` takes its properties as keyword arguments and may be
    a coroutine function. ``args_format`` "code" means that the model writes bare code instead of JSON, so there is
    exactly one parameter and it is a string. Build one from a typed function with `tool`, or directly from an explicit
    schema; ``name_for_human`` is for people. Raises InputError for a name, schema or limit that cannot be used.
    """

    name: str
    description: str
    parameters: dict[str, Any] = field(hash=False)
    function: Callable[..., Any]
    name_for_human: str = ""
    args_format: Literal["json", "code"] = "json"
    seconds: float = 30.0
    max_chars: int = 6000
    _read: schema.Reader | None = field(default=None, repr=False, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise InputError(
                f"{self.name!r} cannot be the name of a tool: use letters, digits, '_', '.' and '-', "
                f"starting with a letter or '_' (set it with name=...)"
            )
        if not callable(self.function):
            raise InputError(f"tool {self.name}: {self.function!r} is not a function")
        if not 0 < self.seconds < math.inf:
            raise InputError(f"tool {self.name}: seconds must be a positive number, not {self.seconds!r}")
        if self.max_chars < _MIN_CHARS:
            raise InputError(f"tool {self.name}: max_chars must be at least {_MIN_CHARS}, not {self.max_chars!r}")
        object.__setattr__(self, "parameters", _own_copy(self.name, self.parameters))
        object.__setattr__(self, "name_for_human", self.name_for_human or _words(self.name))
        object.__setattr__(self, "description", self.description or self.name_for_human)
        if self._read is None:
            schema.check_parameters(self.parameters)
            object.__setattr__(self, "_read", functools.partial(schema.read_by_schema, self.parameters))
        if self.args_format == "code":
            _check_code_parameters(self.name, self.parameters)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself, as if it had never been made a tool: no checks, no limits, errors raised."""
        return self.function(*args, **kwargs)

    def invoke(self, arguments: Mapping[str, Any]) -> ToolResult:
        """Run the tool on a model's arguments; see the module's promises.

        Whatever goes wrong comes back as ``ok=False`` with one short sentence for the model to read.
        """
        started = time.perf_counter()
        try:
            values = self._checked(arguments)
            ok, text = self._run(lambda: _to_text(self.function(**values)))
        except Exception as error:
            ok, text = False, _failure(error)
        content, dropped = _cut_middle(text, self.max_chars)
        return ToolResult(content, ok, dropped, time.perf_counter() - started)

    def _checked(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        assert self._read is not None
        try:
            return self._read(arguments)
        except ToolError as problem:
            call = schema.describe_call(self.name, self.parameters)
            raise ToolError(f"Wrong arguments: {problem}; expected {call}.") from None

    def _run(self, work: Callable[[], str]) -> tuple[bool, str]:
        """Do the work in a daemon thread and wait for it, so that neither a hang nor an exit reaches the caller."""
        done: Future[tuple[bool, str]] = Future()
        context = contextvars.copy_context()
        target = functools.partial(context.run, _settle, done, work)
        threading.Thread(target=target, name=f"tool {self.name}", daemon=True).start()
        deadline = time.monotonic() + self.seconds
        while not done.done():
            left = deadline - time.monotonic()
            if left <= 0:
                raise ToolError(f"{self.name} timed out after {self.seconds:g} s.")
            wait([done], timeout=min(left, _TICK))
        return done.result()


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...


@overload
def tool(
    *,
    name: str = "",
    description: str = "",
    name_for_human: str = "",
    args_format: Literal["json", "code"] = "json",
    seconds: float = 30.0,
    max_chars: int = 6000,
) -> Callable[[Callable[..., Any]], Tool]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str = "",
    description: str = "",
    name_for_human: str = "",
    args_format: Literal["json", "code"] = "json",
    seconds: float = 30.0,
    max_chars: int = 6000,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a tool of a typed function: ``@tool`` or ``@tool(name=..., seconds=...)``.

    Name, description and parameters come from the function's name, docstring and annotations; a docstring is not
    required. Raises InputError when the signature cannot be a tool's (``*args``, a type that JSON cannot carry).
    """

    def build(function: Callable[..., Any]) -> Tool:
        if not callable(function):
            raise InputError(f"{function!r} is not a function, so it cannot be a tool")
        described = schema.function_schema(function)
        return Tool(
            name=name or getattr(function, "__name__", ""),
            description=description or described.description,
            parameters=described.parameters,
            function=function,
            name_for_human=name_for_human,
            args_format=args_format,
            seconds=seconds,
            max_chars=max_chars,
            _read=described.read,
        )

    return build if function is None else build(function)


def toolbox(tools: Iterable[Tool | Callable[..., Any]]) -> dict[str, Tool]:
    """The tools by name, in the order given; plain functions are wrapped with `tool`.

    Raises InputError when two tools have the same name.
    """
    box: dict[str, Tool] = {}
    for each in tools:
        made = each if isinstance(each, Tool) else tool(each)
        if made.name in box:
            raise InputError(f"two tools are called {made.name!r}: give one of them another name")
        box[made.name] = made
    return box


def _own_copy(name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The schema, copied through JSON: the caller's later edits cannot change a tool."""
    try:
        copy = json.loads(json.dumps(parameters))
    except (TypeError, ValueError) as error:
        raise InputError(f"tool {name}: parameters must be a JSON Schema ({error})") from None
    if not isinstance(copy, dict):
        raise InputError(f"tool {name}: parameters must be a JSON Schema object, not {type(parameters).__name__}")
    return copy


def _check_code_parameters(name: str, parameters: Mapping[str, Any]) -> None:
    if [part.get("type") for part in parameters.get("properties", {}).values()] != ["string"]:
        raise InputError(f"tool {name}: args_format 'code' needs exactly one parameter, a string")


def _words(name: str) -> str:
    return " ".join(word[:1].upper() + word[1:] for word in re.split(r"[_.-]+", name) if word) or name


def _settle(done: Future[tuple[bool, str]], work: Callable[[], str]) -> None:
    try:
        outcome = True, work()
    except BaseException as error:  # sys.exit() in a tool ends the tool, not the agent
        outcome = False, _failure(error)
    done.set_result(outcome)


def _to_text(value: Any) -> str:
    """What a model reads of a return value. Runs inside the time limit, since str() of it may do anything."""
    if inspect.iscoroutine(value):
        import asyncio  # a third of this module's import time, for the rare coroutine

        value = asyncio.run(value)
    if value is None:
        return "(no output)"
    if not isinstance(value, str):
        value = _as_json(value)
    return str.__str__(value) or "(empty result)"


def _as_json(value: Any) -> str:
    from pydantic_core import to_jsonable_python  # costs import time, and most tools return a string

    plain = to_jsonable_python(value, fallback=str)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def _failure(error: BaseException) -> str:
    message = _message(error)
    if isinstance(error, ToolError) and message:
        return message
    line = " ".join(message[: 4 * _MAX_FAILURE_CHARS].split())[:_MAX_FAILURE_CHARS]
    return f"Error: {type(error).__name__}: {line}" if line else f"Error: {type(error).__name__}"


def _message(error: BaseException) -> str:
    """The error's text, or nothing when the error itself is broken: this is still the border of `Tool.invoke`."""
    try:
        return str.__str__(str(error))
    except Exception:
        return ""


def _cut_middle(text: str, limit: int) -> tuple[str, int]:
    """At most ``limit`` characters of the text, and how many of its own were left out."""
    dropped = 0
    if len(text) > limit:
        kept = limit - len(_note(len(text)))
        dropped = len(text) - kept
        tail = kept // 2
        text = text[: kept - tail] + _note(dropped) + text[len(text) - tail :]
    # A lone surrogate is a str that nothing can print, store or tokenize.
    return text.encode("utf-8", "replace").decode("utf-8"), dropped


def _note(dropped: int) -> str:
    return f"\n... ({dropped} characters left out) ...\n"
