"""A tool: a function that a model can call by name with JSON arguments.

Promises
- ``Tool.invoke`` never raises, whatever the model or the tool does, except KeyboardInterrupt.
- It returns after about ``seconds``, or soon after the run is cancelled, even when the tool hangs; Ctrl-C gets through.
- The text it returns is at most ``max_chars`` long, and says how much was left out of the middle.

Not promised
- A tool that timed out or was cancelled is abandoned, not stopped: its daemon thread goes on until the tool returns.
  A long tool asks `cancelled` now and then, and stops by itself.
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
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, overload

from qwen_agent.errors import InputError, ToolError
from qwen_agent.tools import schema, workers
from qwen_agent.types import Artifact, ToolResult

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_TICK = 0.1  # seconds; waits are cut into ticks because a long wait cannot be interrupted on Windows
_MIN_CHARS = 100  # room for the note about what was left out
_MIN_TOKENS = 40  # the same, in tokens
_MAX_FAILURE_CHARS = 500

Approval = Literal["auto", "ask", "deny"]
_abandoned: contextvars.ContextVar[Callable[[], bool]] = contextvars.ContextVar("abandoned", default=lambda: False)


def cancelled() -> bool:
    """For use inside a tool: True once nobody waits for its result any more (time limit, cancelled run)."""
    return _abandoned.get()()


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """What a tool's function returns when its result is more than text: what the model reads, and files."""

    text: str
    artifacts: tuple[Artifact, ...] = ()


@dataclass(frozen=True, slots=True)
class Tool:
    """A function, and what a model needs to call it: ``name``, ``description``, ``parameters``.

    ``parameters`` is a JSON Schema of one object; ``function`` takes its properties as keyword arguments and may be
    a coroutine function. ``args_format`` "code" means that the model writes bare code instead of JSON, so there is
    exactly one parameter and it is a string. Build one from a typed function with `tool`, or directly from an explicit
    schema; ``name_for_human`` is for people. Raises InputError for a name, schema or limit that cannot be used.

    ``max_chars`` bounds the text that `invoke` returns; ``max_tokens`` what a model reads of it (None: the agent's own
    limit). ``approval`` says whether a person is asked before each call. ``repeatable`` is True for a tool whose
    result may differ when it is called again with the same arguments (a clock, an interpreter with state).
    ``untrusted`` says that results may hold text by strangers (a web page), ``side_effects`` that a call changes
    something outside of the run (a file, a message).
    """

    name: str
    description: str
    parameters: dict[str, Any] = field(hash=False)
    function: Callable[..., Any]
    name_for_human: str = ""
    args_format: Literal["json", "code"] = "json"
    seconds: float = 30.0
    max_chars: int = 6000
    max_tokens: int | None = None
    approval: Approval = "auto"
    repeatable: bool = False
    untrusted: bool = False
    side_effects: bool = False
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
        if self.max_tokens is not None and self.max_tokens < _MIN_TOKENS:
            raise InputError(f"tool {self.name}: max_tokens must be at least {_MIN_TOKENS}, not {self.max_tokens!r}")
        if self.approval not in get_args(Approval):
            raise InputError(f"tool {self.name}: approval must be 'auto', 'ask' or 'deny', not {self.approval!r}")
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

    def invoke(
        self,
        arguments: Mapping[str, Any],
        *,
        seconds: float = math.inf,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> ToolResult:
        """Run the tool on a model's arguments; see the module's promises.

        Whatever goes wrong comes back as ``ok=False`` with one short sentence for the model to read. ``seconds`` can
        only shorten the tool's own limit; ``cancelled`` is asked while the tool runs.
        """
        started = time.perf_counter()
        try:
            values = self._checked(arguments)
            ok, output = self._run(lambda: _to_output(self.function(**values)), min(seconds, self.seconds), cancelled)
        except Exception as error:
            ok, output = False, ToolOutput(_failure(error))
        content, dropped = _cut_middle(output.text, self.max_chars)
        return ToolResult(content, ok, dropped, time.perf_counter() - started, output.artifacts)

    def describe(self) -> dict[str, Any]:
        """What is known of the tool without its function, as plain values."""
        kept = ("name", "description", "parameters", "name_for_human", "args_format")
        return {
            name: getattr(self, name)
            for name in (*kept, "max_tokens", "approval", "repeatable", "untrusted", "side_effects")
        }

    def _checked(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        assert self._read is not None
        try:
            return self._read(arguments)
        except ToolError as problem:
            call = schema.describe_call(self.name, self.parameters)
            raise ToolError(f"Wrong arguments: {problem}; expected {call}.") from None

    def _run(
        self, work: Callable[[], ToolOutput], seconds: float, cancelled: Callable[[], bool]
    ) -> tuple[bool, ToolOutput]:
        """Do the work in a thread and wait for it, so that neither a hang nor an exit reaches the caller."""
        abandoned = threading.Event()
        context = contextvars.copy_context()
        context.run(_abandoned.set, abandoned.is_set)
        job = workers.start(functools.partial(context.run, _settled, work))
        deadline = time.monotonic() + seconds
        try:
            while not job.wait(min(deadline - time.monotonic(), _TICK)):
                if time.monotonic() >= deadline:
                    raise ToolError(f"{self.name} timed out after {seconds:.3g} s.")
                if cancelled():
                    raise ToolError(f"{self.name} was cancelled.")
        finally:
            abandoned.set()
        return job.result


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
    max_tokens: int | None = None,
    approval: Approval = "auto",
    repeatable: bool = False,
    untrusted: bool = False,
    side_effects: bool = False,
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
    max_tokens: int | None = None,
    approval: Approval = "auto",
    repeatable: bool = False,
    untrusted: bool = False,
    side_effects: bool = False,
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
            max_tokens=max_tokens,
            approval=approval,
            repeatable=repeatable,
            untrusted=untrusted,
            side_effects=side_effects,
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


def _settled(work: Callable[[], ToolOutput]) -> tuple[bool, ToolOutput]:
    try:
        return True, work()
    except BaseException as error:  # sys.exit() in a tool ends the tool, not the agent
        return False, ToolOutput(_failure(error))


def _to_output(value: Any) -> ToolOutput:
    """What came of a call. Runs inside the time limit, since a coroutine, or str() of a value, may do anything."""
    if inspect.iscoroutine(value):
        import asyncio  # a third of this module's import time, for the rare coroutine

        value = asyncio.run(value)
    if isinstance(value, ToolOutput):
        return ToolOutput(str.__str__(value.text) or "(empty result)", tuple(value.artifacts))
    return ToolOutput(_to_text(value))


def _to_text(value: Any) -> str:
    """What a model reads of a return value."""
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
