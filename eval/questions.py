"""Sixteen questions with real tools, and what really happened, as a Markdown page.

    python eval/questions.py > docs/questions.md

Greedy decoding, so the same weights on the same kind of CPU write the same page. A question counts as right if the
final answer holds the expected text and none of the wrong ones.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from qwen_agent import Agent, AgentResult, Tool, load_runtime
from qwen_agent.tools import calculator, search_documents
from qwen_agent.tools.code_interpreter import code_interpreter

DOCS = Path(__file__).parent.parent / "examples" / "docs"


@dataclass(frozen=True, slots=True)
class Question:
    """A question, the tools it may use, a text that a right answer holds, and texts that make it wrong."""

    text: str
    tools: tuple[str, ...]
    expected: str
    wrong: tuple[str, ...] = ()


QUESTIONS = (
    Question("How tall is the Eiffel Tower multiplied by 3?", ("search", "calculator"), "990"),
    Question("What is the height of Mount Everest divided by 2?", ("search", "calculator"), "4424.5"),
    Question("What is 15% of 240?", ("search", "calculator"), "36"),
    Question(
        "I have 24 boxes with 17 apples in each and I give away 58 apples. How many are left?", ("calculator",), "350"
    ),
    Question("What is the square root of 1764 plus 8?", ("calculator",), "50"),
    Question("What is 123456789 * 987654321?", ("calculator",), "121932631112635269"),
    Question("Who was the first person on the moon?", ("search",), "Armstrong"),
    Question("What is the capital of Norway?", ("search",), "Oslo", ("560",)),
    Question("How long is the Great Wall of China?", ("search",), "21,196"),
    Question("Who created the Python language?", ("search", "calculator"), "Rossum"),
    Question("How tall is Tokyo Tower?", ("search", "calculator"), "333", ("110889",)),
    Question("How many legs does a honey bee have times 4?", ("search", "calculator"), "24"),
    Question("Use Python to add up the numbers from 1 to 100.", ("code_interpreter",), "5050"),
    Question("Run Python code that prints the 10th Fibonacci number.", ("code_interpreter",), "55", ("13, 21",)),
    Question("Write Python code to sort the list 5, 3, 9, 1 and print it.", ("code_interpreter",), "1, 3, 5, 9"),
    Question("Tell me a joke please.", ("search", "calculator"), "", ("no tool", "not relevant")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="embedded, a folder or a hub id")
    args = parser.parse_args()
    runtime = load_runtime(args.model)
    tools = {tool.name: tool for tool in (search_documents(DOCS, results=1, chars=120), calculator, code_interpreter())}
    results = [Agent(runtime, [tools[name] for name in q.tools]).run(q.text) for q in QUESTIONS]
    print(_page(args.model, tools, results))


def _page(model: str, tools: dict[str, Tool], results: list[AgentResult]) -> str:
    right = [_right(question, result) for question, result in zip(QUESTIONS, results, strict=True)]
    lines = [
        "# Sixteen questions, and what really happened",
        "",
        f"The {model} model with real tools ({', '.join(tools)}) over `examples/docs`, greedy. "
        f"{sum(right)} of {len(right)} answers are right. Made by `python eval/questions.py > docs/questions.md`.",
        "",
    ]
    for question, result, good in zip(QUESTIONS, results, right, strict=True):
        lines += _section(question, result, good)
    return "\n".join(lines).rstrip()


def _right(question: Question, result: AgentResult) -> bool:
    return question.expected in result.answer and not any(wrong in result.answer for wrong in question.wrong)


def _section(question: Question, result: AgentResult, good: bool) -> list[str]:
    verdict = "Right" if good else "Wrong"
    lines = [f"## {question.text}", "", f"Offered: {', '.join(question.tools)}. **{verdict}.**", ""]
    for step in result.steps:
        if step.call is not None and step.result is not None:
            lines.append(f"- `{step.call.name}` {_inline(step.call.raw)} → {_inline(step.result.content)}")
    return [*lines, f"- answer ({result.stop_reason.value}): {_inline(result.answer)}", ""]


def _inline(text: str, most: int = 300) -> str:
    one_line = text.replace("`", "'").replace("\n", "\\n")
    return f"`{one_line if len(one_line) <= most else one_line[: most - 3] + '...'}`"


if __name__ == "__main__":
    main()
