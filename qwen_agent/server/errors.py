"""Errors as OpenAI's API words them: {"error": {"message", "type", "param", "code"}} with a fitting status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qwen_agent.errors import Busy, ContextOverflow, InputError, Stopped

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

RETRY_AFTER = 2  # seconds after which a place may be free

_INVALID = "invalid_request_error"
_MAX_PROBLEMS = 3  # told of one request


@dataclass(eq=False)
class ApiError(Exception):
    """An answer that is an error."""

    status: int
    message: str
    type: str = _INVALID
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def api_error(error: BaseException) -> ApiError:
    """What a client is told of an error. Only errors that are raised on purpose tell what went wrong."""
    match error:
        case ApiError():
            return error
        case ContextOverflow():
            return ApiError(400, str(error), code="context_length_exceeded")
        case InputError():
            return ApiError(400, str(error))
        case Busy():
            headers = {"retry-after": str(RETRY_AFTER)}
            return ApiError(429, str(error), "rate_limit_error", "rate_limit_exceeded", headers=headers)
        case Stopped():
            # OpenAI's clients would send the same once more, which would take as long.
            return ApiError(503, str(error), "server_error", "stopped", headers={"x-should-retry": "false"})
    return ApiError(500, "the server failed at this request; its log says where", "server_error", "internal_error")


def no_model(name: str, served: tuple[str, ...]) -> ApiError:
    """The error for a model that is not served."""
    there = ", ".join(repr(one) for one in served)
    return ApiError(
        404, f"The model {name[:100]!r} does not exist here; there is {there}", code="model_not_found", param="model"
    )


def of_validation(problems: list[ErrorDetails] | list[Any]) -> ApiError:
    """The error for a body that is not what it should be: where and why, without what was sent."""
    told = []
    for problem in problems[:_MAX_PROBLEMS]:
        if problem["type"] == "json_invalid":
            told.append(f"the body is not JSON: {problem['ctx']['error']} at character {problem['loc'][-1]}")
            continue
        where = _where(problem["loc"])
        told.append(f"{where}: {problem['msg']}" if where else f"the body: {problem['msg']}")
    if len(problems) > _MAX_PROBLEMS:
        told.append(f"and {len(problems) - _MAX_PROBLEMS} more")
    param = _where(problems[0]["loc"]) if problems else ""
    return ApiError(400, "; ".join(told), param=param or None, code=problems[0]["type"] if problems else None)


def _where(location: tuple[str | int, ...]) -> str:
    """messages[0].content: the place in the body."""
    parts = [part for part in location if part != "body"]
    if parts and isinstance(parts[0], int) and len(parts) == 1:
        return ""  # a place in the text of JSON that cannot be read
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")[:200]
