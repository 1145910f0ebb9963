"""Events as plain JSON values, and back.

Nothing is lost on the way but the types of values that JSON does not have: a tuple inside a tool's arguments comes back
as a list, the object of an ``output_type`` as a dict. The values in types.py are the schema; a field that a line lacks
takes its default, so that older logs stay readable when a field is added.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from qwen_agent.errors import InputError
from qwen_agent.types import (
    ApprovalNeeded,
    Approved,
    Compacted,
    Control,
    Delta,
    Event,
    Finished,
    Generated,
    LimitReached,
    ModelWrote,
    Reading,
    RunStarted,
    Segment,
    StepFinished,
    Text,
    ToolFinished,
    ToolStarted,
    Weighed,
)

_KINDS: dict[str, type[Event]] = {
    "reading": Reading,
    "delta": Delta,
    "tool_started": ToolStarted,
    "step_finished": StepFinished,
    "approval_needed": ApprovalNeeded,
    "run_started": RunStarted,
    "weighed": Weighed,
    "model_wrote": ModelWrote,
    "approved": Approved,
    "tool_finished": ToolFinished,
    "compacted": Compacted,
    "limit_reached": LimitReached,
    "finished": Finished,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def to_json(event: Event) -> dict[str, Any]:
    """The event as a JSON object; ``"event"`` names its type."""
    return {"event": _NAMES[type(event)], **_plain(event)}


def from_json(value: Mapping[str, Any]) -> Event:
    """The event that `to_json` made this of. Raises InputError, which says what is wrong with it."""
    fields = dict(value)
    name = fields.pop("event", None)
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise InputError(f"there is no event {name!r}: expected one of {', '.join(_KINDS)}")
    try:
        event: Event = _read(kind, fields)
    except ValueError as error:
        raise InputError(f"{name}{error}") from None
    return event


def _plain(value: Any) -> Any:
    match value:
        case None | bool():
            return value
        case Enum():  # before str: ours are both
            return value.value
        case str() | int() | float():
            return value
        case Control(name):
            return {"control": name}
        case Text(content):
            return {"text": content}
        case Generated(content, ids):
            return {"text": content, "ids": list(ids)}
        case Mapping():
            return {str(key): _plain(each) for key, each in value.items()}
        case list() | tuple():
            return [_plain(each) for each in value]
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    from pydantic_core import to_jsonable_python  # costs import time; only an agent with an output_type comes here

    return to_jsonable_python(value, fallback=str)


def _read(hint: Any, value: Any) -> Any:
    """The value of type ``hint`` that a JSON value stands for. Raises ValueError("<where>: <what is wrong>")."""
    origin, options = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _read_union(hint, options, value)
    if origin is tuple:
        items = enumerate(_expect(list, value))
        return tuple(_at(f"[{at}]", options[0], each) for at, each in items)
    if origin is not None and origin is not Literal:
        return {key: _at(f".{key}", options[1], each) for key, each in _expect(dict, value).items()}
    if dataclasses.is_dataclass(hint):
        return _read_fields(hint, _expect(dict, value))
    if origin is Literal or issubclass(hint, Enum):
        allowed = options or [each.value for each in hint]
        if value not in allowed:
            raise ValueError(f": {value!r} is none of {', '.join(map(str, allowed))}")
        return value if options else hint(value)
    return float(_expect((int, float), value)) if hint is float else _expect(hint, value)


def _read_union(hint: Any, options: tuple[Any, ...], value: Any) -> Any:
    if hint == Segment:
        kind = Control if "control" in _expect(dict, value) else Generated if "ids" in value else Text
        names = {"control": "name", "text": "content", "ids": "token_ids"}
        return _read_fields(kind, {names.get(key, key): each for key, each in value.items()})
    return None if value is None else _read(options[0], value)  # X | None


def _read_fields(kind: Any, values: Mapping[str, Any]) -> Any:
    hints = _hints(kind)
    unknown = values.keys() - hints.keys()
    if unknown:
        raise ValueError(f".{min(unknown)}: there is no such field")
    read = {name: _at(f".{name}", hints[name], each) for name, each in values.items()}
    try:
        return kind(**read)
    except TypeError as error:  # "missing 1 required positional argument: 'call'"
        raise ValueError(f": {str(error).partition(' ')[2]}") from None


def _at(where: str, hint: Any, value: Any) -> Any:
    try:
        return _read(hint, value)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from None


def _expect(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        wanted = "number" if isinstance(kind, tuple) else kind.__name__
        raise ValueError(f": expected {wanted}, found {type(value).__name__}")
    return value


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
