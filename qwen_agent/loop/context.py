"""Keeping a run inside the model's window: results cut to size, old observations replaced by stubs.

The system text, the tools, the question, every thought and call and the last observations stay as they are; a
thought, its call and its observation are never torn apart. Room is made rarely and then a quarter of the window at
once, because everything behind the first stub has to be read again.
"""

from __future__ import annotations

from collections.abc import Callable

from qwen_agent.loop.run import Run
from qwen_agent.prompt import stub
from qwen_agent.types import Compacted, Prompt, Text

Count = Callable[[Prompt], int]

ANSWER_TOKENS = 256  # kept free in the window for a forced final answer and the words that force it
STEP_TOKENS = 96  # with less room than this before that, another step is not begun
SHORTEST_OBSERVATION = 40  # tokens; so much of a result is shown however full the window is
_STUB_TOKENS = 32  # about what a stub takes; shorter observations are left alone


def room(run: Run) -> int:
    """Tokens that may still be written before the part of the window that is kept for the answer."""
    return run.window - ANSWER_TOKENS - run.tokens


def observation_limit(run: Run, wanted: int, written: int) -> int:
    """How many tokens of a result can be shown after a step of ``written`` tokens, if all that may be become stubs."""
    # The newest result will count among the last ones, so one more of the earlier ones may go.
    freed = sum(run.turns[at].observed_tokens - _STUB_TOKENS for at in _shrinkable(run, run.limits.verbatim_steps - 1))
    return min(wanted, max(room(run) + freed - written - STEP_TOKENS, SHORTEST_OBSERVATION))


def compaction(run: Run, count: Count) -> tuple[Compacted, dict[int, Prompt]] | None:
    """The stubs that make room for another step, oldest observations first; None if none is needed or possible."""
    if room(run) >= STEP_TOKENS:
        return None
    wanted = STEP_TOKENS + run.window // 4
    stubs: dict[int, Prompt] = {}
    tokens = run.tokens
    for at in _shrinkable(run, run.limits.verbatim_steps):
        if run.window - ANSWER_TOKENS - tokens >= wanted:
            break
        turn = run.turns[at]
        stubs[at] = stub(at + 1, turn.observed_tokens)
        tokens += count(stubs[at]) - turn.observed_tokens
    return (Compacted(tuple(stubs), tokens, run.digest), stubs) if stubs else None


def stubs_for(run: Run, fact: Compacted) -> dict[int, Prompt]:
    """The same stubs again, for a fact of the past."""
    return {at: stub(at + 1, run.turns[at].observed_tokens) for at in fact.steps}


def cut(text: str, limit: int, count: Count) -> tuple[str, int]:
    """Head and tail of a text that has more than ``limit`` tokens, and how many characters were left out."""
    if len(text.encode("utf-8", "replace")) <= limit:  # no token is shorter than a byte
        return text, 0
    tokens = count((Text(text),))
    kept = len(text)
    while tokens > limit and kept > 1:
        kept = min(int(kept * 0.95 * limit / tokens), kept - 1)
        shorter = _head_and_tail(text, kept)
        tokens = count((Text(shorter),))
    return (text, 0) if kept == len(text) else (shorter, len(text) - kept)


def _head_and_tail(text: str, kept: int) -> str:
    tail = kept // 2
    return f"{text[: kept - tail]}\n... ({len(text) - kept} characters left out) ...\n{text[len(text) - tail :]}"


def _shrinkable(run: Run, verbatim: int) -> list[int]:
    """The steps whose observation may become a stub, oldest first."""
    old = run.turns[: max(len(run.turns) - verbatim, 0)]
    return [at for at, turn in enumerate(old) if not turn.is_stub and turn.observed_tokens > _STUB_TOKENS]
