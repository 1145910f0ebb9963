"""A run after its end: in one line for a person, and as one JSON object."""

from __future__ import annotations

from typing import Any

from qwen_agent.types import AgentResult, Step, StopReason, Usage


def summary(result: AgentResult) -> str:
    """One line about what a run cost, why it ended if not by itself, and how far its steps can be trusted."""
    usage, steps = result.usage, result.steps
    speed = usage.generated_tokens / usage.decode_seconds if usage.decode_seconds else 0.0
    chances = [_chance(step) for step in steps if step.confidence is not None]
    invented = sum(step.invented for step in steps)
    repairs = sum(len(_repairs(step)) for step in steps)
    parts = (
        _ended(result),
        _calls(result),
        f"read {usage.prefilled_tokens} of {usage.prompt_tokens} prompt tokens ({usage.cached_tokens} from the cache)",
        f"wrote {usage.generated_tokens} tokens at {speed:.0f}/s",
        f"confidence {' '.join(f'{chance:.2f}' for chance in chances)}" if chances else "",
        f"{invented} invented observations cut" if invented else "",
        f"{repairs} repairs" if repairs else "",
    )
    return "; ".join(part for part in parts if part)


def spent(result: AgentResult) -> str:
    """The same in a few words, for a conversation."""
    seconds = result.usage.prefill_seconds + result.usage.decode_seconds
    seconds += sum(step.result.seconds for step in result.steps if step.result is not None)
    parts = (_ended(result), _calls(result), f"{result.usage.generated_tokens} tokens", f"{seconds:.1f} s")
    return ", ".join(part for part in parts if part)


def as_json(question: str, result: AgentResult) -> dict[str, Any]:
    """The object that ``--json`` prints."""
    return {
        "question": question,
        "answer": result.answer,
        "stop_reason": result.stop_reason.value,
        "steps": [_step_json(step) for step in result.steps],
        "usage": _usage_json(result.usage),
    }


def _ended(result: AgentResult) -> str:
    return "" if result.stop_reason is StopReason.FINAL_ANSWER else f"stopped: {result.stop_reason.value}"


def _calls(result: AgentResult) -> str:
    calls = sum(step.call is not None for step in result.steps)
    return f"{calls} tool call" + "s" * (calls != 1)


def _chance(step: Step) -> float:
    """What the model thought of doing what it then did."""
    assert step.confidence is not None
    return step.confidence.answer if step.call is None else step.confidence.tools.get(step.call.name, 0.0)


def _repairs(step: Step) -> list[str]:
    return [*step.repairs, *(step.call.repairs if step.call is not None else ())]


def _step_json(step: Step) -> dict[str, Any]:
    shown: dict[str, Any] = {"thought": step.thought}
    if step.call is not None:
        shown["action"] = step.call.name
        shown["action_input"] = step.call.raw if step.call.arguments is None else dict(step.call.arguments)
    if step.result is not None:
        shown["observation"] = step.result.content
        shown["ok"] = step.result.ok
        shown["seconds"] = round(step.result.seconds, 4)
    shown["repairs"] = _repairs(step)
    shown["invented_observations"] = step.invented
    if step.discarded:
        shown["discarded"] = step.discarded
    if step.confidence is not None:
        tools = {name: round(chance, 4) for name, chance in step.confidence.tools.items()}
        shown["confidence"] = {"answer": round(step.confidence.answer, 4), "tools": tools}
    return shown


def _usage_json(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "prefilled_tokens": usage.prefilled_tokens,
        "generated_tokens": usage.generated_tokens,
        "prefill_seconds": round(usage.prefill_seconds, 4),
        "decode_seconds": round(usage.decode_seconds, 4),
    }
