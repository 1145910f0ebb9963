"""How far a run may go."""

from __future__ import annotations

from dataclasses import dataclass

from qwen_agent.errors import InputError


@dataclass(frozen=True, slots=True)
class Limits:
    """The budgets of a run. At each of them the tools are withdrawn and the model is made to answer.

    ``steps`` bounds the steps with an action, ``tool_calls`` those that really reached a tool (None: no bound of its
    own), ``tokens`` what may be generated and ``seconds`` the wall clock (None: no bound); the forced answer comes on
    top and is short. ``repeats`` is how often the same call may be asked for: the second time it gets its earlier
    result and a nudge, and beyond ``repeats`` the run ends.

    ``observation_tokens`` is what a model reads of one result, unless the tool has a limit of its own.
    ``verbatim_steps`` is how many of the last observations stay whole when room is made in the window.
    """

    steps: int = 8
    tool_calls: int | None = None
    tokens: int = 4096
    seconds: float | None = None
    repeats: int = 2
    observation_tokens: int = 1500
    verbatim_steps: int = 2

    def __post_init__(self) -> None:
        rules = (
            ("steps", self.steps >= 0, "0 or more"),
            ("tool_calls", self.tool_calls is None or self.tool_calls >= 0, "0 or more, or None"),
            ("tokens", self.tokens >= 0, "0 or more"),
            ("seconds", self.seconds is None or 0 <= self.seconds < float("inf"), "0 or more, or None"),
            ("repeats", self.repeats >= 1, "at least 1"),
            ("observation_tokens", self.observation_tokens >= 40, "at least 40"),
            ("verbatim_steps", self.verbatim_steps >= 1, "at least 1"),
        )
        for name, good, wanted in rules:
            if not good:
                raise InputError(f"Limits.{name}={getattr(self, name)!r} cannot be used: it must be {wanted}")
