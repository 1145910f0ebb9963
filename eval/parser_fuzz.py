"""Does the parser hold its promises on what no one would write? Random and mutated outputs, cut in every way.

    python eval/parser_fuzz.py --count 100000 --seed 0

Each output of up to 120 characters is fed whole, letter by letter, and in two pieces cut at every place; a longer one
whole, letter by letter and cut at 20 random places. Promises: nothing raises; kept and discarded are the output; no
observation is shown or kept; the deltas are the parts; and how the output was cut makes no difference. The action
input is read as arguments, which may not raise either.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from random import Random
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from qwen_agent.arguments import read_arguments
from qwen_agent.parser import Parsed, StepParser

PROMISES = ("exceptions", "lost text", "leaks", "deltas not the parts", "cuts that matter")  # broken ones, that is

STEPS = (
    'Thought: I should search.\nAction: search\nAction Input: {"query": "Eiffel"}\nObservation: 330 m\nThought: so\n',
    "**Thought:** so\n**Action:** `search`\n**Action Input:** {'query': 'x',}\n**Observation:** 12\n",
    '```\nThought: I do.\nAction: search\nAction Input: ```json\n{"a": [1, 2]}\n```\n```\nObservation: 3',
    "Thought: I now know.\nFinal Answer: 990\n\nThat is 3 x 330.\nObservation: no\nAction: more",
    'Action: search(query="a", n=3)\nObservation: x',
    'I do.\n<tool_call>\n{"name": "search", "arguments": {"q": "x"}}\n</tool_call>\nObservation: 5',
    "思考：查一下\r\n行动：search\r\n行动输入：{“query”：“塔”}\r\n观察：330\r\n最终答案：330",
    'Question: q\nThought: t\nAction: search Action Input: {"a": {"b": "c\\nd"}}\nObservation:',
    "### Action: None\n### Final Answer: **42**",
)
NAMES = (
    *("Thought", "Action", "Action Input", "ActionInput", "Action_Input", "Observation", "Final Answer", "Question"),
    *("观察", "行动", "行动输入", "思考", "最终答案", "Observ", "Obser", "Action In", "Observation Observation"),
)
PIECES = (
    *('{"query": "x"}', "{'a': 1,}", '{"a": [1, 2', "}}", "{{", '{"name": "search", "arguments": {"q": 1}}', "{", "}"),
    *('{"action": "x", "action_input": "y"}', 'search(query="a")', "search", "`search`", "None", "NaN", "[", "(", ")"),
    *("```", "```json\n", "```\n", "<tool_call>", "</tool_call>", "<think>", "**", "*", "_", "#", ">", "`", "-", "O"),
    *(
        '"',
        "'",
        "\\",
        '\\"',
        "\\u12",
        "“",
        "”",
        ":",
        "：",
        "，",
        "=",
        "\x00",
        "\x0b",
        "\x1c",
        "\x85",
        "\u2028",
        "\ufeff",
    ),
    *("\r", "\r\n", "\n", "\n\n", " ", "\t", "\u3000", "\xa0", "é", "😀", "\ud800", "the answer is 42", "Obs"),
)
LEADS = ("", "", "", "", " ", "**", "### ", "> ", "`", "* ", "_", "- ", "\u3000", "```\n", "```\n**", "x", " " * 30)
TAILS = (":", ":", ":", "：", ":**", "**:", " :", ": ", "", "`:", ":`", " **：** ")
SCHEMAS: tuple[dict[str, Any], ...] = (
    {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    {"type": "object", "properties": {"a": {"type": "integer"}, "q": {"type": "string"}}, "required": ["a"]},
    {},
)

# The marker of an observation, written here anew: at the start of a line, and as the prompt spells it, anywhere.
_TAIL = r"[ \t\r\xa0\u3000*_#>`]{0,8}[:：]"
_SHOWN = re.compile("Observation[:\uff1a]")
_KEPT = re.compile(rf"{_SHOWN.pattern}|^[ \t\r\xa0\u3000*_#>`]{{0,24}}(?i:observation|观察){_TAIL}", re.MULTILINE)

Reading = tuple[dict[str, str], Parsed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="outputs")
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same outputs")
    args = parser.parse_args()
    rng = Random(args.seed)
    broken: Counter[str] = Counter()
    splits, started = 0, time.monotonic()
    for _ in track(range(args.count), "parsing", console=Console(stderr=True)):
        text = output(rng)
        cuts = ways_to_cut(text, rng)
        splits += len(cuts)
        for promise in (found := violations(text, cuts)):
            broken[promise] += 1
        if found:
            Console(stderr=True).print(f"{', '.join(found)}: {text!r}", markup=False)
    _print(args.count, splits, broken, time.monotonic() - started)


def output(rng: Random) -> str:
    """A model's output that may be anything."""
    return mutated(rng) if rng.random() < 0.5 else assembled(rng)


def assembled(rng: Random) -> str:
    """Markers in all spellings and pieces of everything, in any order."""
    return "".join(_marker(rng) if rng.random() < 0.4 else rng.choice(PIECES) for _ in range(rng.randint(1, 14)))


def mutated(rng: Random) -> str:
    """A step with some letters lost, doubled, swapped or put in."""
    text = rng.choice(STEPS)
    for _ in range(rng.randint(1, 6)):
        a, b = sorted(rng.randint(0, len(text)) for _ in range(2))
        b = b if rng.random() < 0.2 else min(b, a + 2)
        change = rng.choice((text[a:b] * 2, "", text[a:b][::-1], rng.choice(PIECES), _marker(rng)))
        text = text[:a] + change + text[b:]
    return text


def _marker(rng: Random) -> str:
    name = rng.choice(NAMES)
    name = rng.choice((name, name, name, name.lower(), name.upper()))
    return rng.choice(("\n", "\n", "\r\n", "", " ")) + rng.choice(LEADS) + name + rng.choice(TAILS)


def ways_to_cut(text: str, rng: Random) -> list[Sequence[int]]:
    """Places to cut the text at: every one at once, and each alone."""
    places = range(1, len(text))
    alone = places if len(text) <= 120 else rng.sample(places, 20)
    return [places, *((place,) for place in alone)]


def violations(text: str, cuts: Sequence[Sequence[int]]) -> list[str]:
    """The promises that are broken on this output."""
    try:
        whole = read(text)
        others = [read(text, places) for places in cuts]
        for schema in SCHEMAS:
            read_arguments(whole[1].action_input, schema)
            read_arguments(text, schema, "code")
    except Exception:  # any exception at all is what is looked for
        return ["exceptions"]
    return [promise for promise, holds in zip(PROMISES[1:], _checks(text, whole, others), strict=True) if not holds]


def _checks(text: str, whole: Reading, others: Sequence[Reading]) -> Iterator[bool]:
    shown, parsed = whole
    parts = {"thought": parsed.thought, "action": parsed.action or "", "action_input": parsed.action_input}
    parts["final_answer"] = parsed.answer or ""
    yield parsed.kept + parsed.discarded == text
    yield not _KEPT.search(parsed.kept) and not any(_SHOWN.search(part) for part in shown.values())
    yield bool(parsed.repairs) or all(shown.get(name, "").strip() == part for name, part in parts.items())
    yield all(other == whole for other in others)


def read(text: str, cuts: Sequence[int] = ()) -> Reading:
    """What was shown of each part, and the step, when the text comes in pieces."""
    parser = StepParser()
    shown: dict[str, str] = {}
    deltas = [delta for a, b in pairwise((0, *cuts, len(text))) for delta in parser.feed(text[a:b])]
    held, parsed = parser.finish()
    for delta in deltas + held:
        shown[delta.part] = shown.get(delta.part, "") + delta.text
    return shown, parsed


def _print(count: int, splits: int, broken: Counter[str], seconds: float) -> None:
    table = Table("outputs", "cuts", *PROMISES, "seconds")
    table.add_row(f"{count:,}", f"{splits:,}", *(str(broken[promise]) for promise in PROMISES), f"{seconds:.0f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
