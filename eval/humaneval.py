"""HumanEval: functions completed by a model, each tested in the sandbox; pass@1, greedy.

    python eval/humaneval.py run embedded --data HumanEval.jsonl.gz --form base --out humaneval.jsonl
    python eval/humaneval.py run Qwen/Qwen-7B-Chat --data HumanEval.jsonl.gz --form chat --out chat.jsonl
    python eval/humaneval.py report humaneval.*.jsonl --data HumanEval.jsonl.gz
    python eval/humaneval.py score samples.jsonl --data HumanEval.jsonl.gz

The data are those of openai/human-eval (MIT). Forms of the prompt, as in Qwen's ``eval/evaluate_humaneval.py`` and
``evaluate_chat_humaneval.py`` of 2023: base continues the prompt, and what comes from the first blank line or the first
"def " on is cut off, which costs functions with a blank line inside; chat asks "Help me fill the following code." and
takes the body of the function from the answer.

Each problem has its own jail, with limits of time and memory, and its test has another one (checked_code.py): nothing
that is written can pass by another way than right results. ``score`` judges completions made elsewhere: lines with
"task_id" and "completion", as human-eval takes them; only the first of each task counts.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import model_options
import run_report
from answers import About, Answer, Question, collect, part, recorded
from checked_code import MEMORY, Verdict, judge
from shares import Share

from qwen_agent.errors import InputError, QwenAgentError
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.prompt import DEFAULT_SYSTEM, chatml
from qwen_agent.types import Prompt, Text

BENCHMARK = "HumanEval"
CUTS = ("\n\n", "def ")
ASKED = "Help me fill the following code.\n"
PUBLISHED = {
    "base": {"Qwen-7B": 24.4, "Qwen-7B v1.1": 29.9},
    "chat": {"Qwen-7B-Chat": 24.4, "Qwen-7B-Chat Int4": 23.8},
}
SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Problem:
    """``prompt`` is code that ends inside of the function ``entry_point``; ``test`` defines check(candidate)."""

    task_id: str
    prompt: str
    entry_point: str
    test: str
    canonical_solution: str = ""


def passes(problem: Problem, completion: str, *, seconds: float = SECONDS, memory: int = MEMORY) -> Verdict:
    """Whether the prompt with this completion defines a function that passes the test of the problem.

    Raises SandboxUnavailable where no code can be run safely.
    """
    test = f"{problem.prompt}\n{problem.test}"  # some tests use functions of the prompt
    return judge(f"{problem.prompt}{completion}", problem.entry_point, test, seconds=seconds, memory=memory)


def read(path: Path) -> list[Problem]:
    """The problems in a file of JSON Lines, packed with gzip or not. Raises InputError."""
    names = ("task_id", "prompt", "entry_point", "test", "canonical_solution")
    try:
        rows = [json.loads(line) for line in _text(path).splitlines() if line.strip()]
        return [Problem(**{name: row[name] for name in names}) for row in rows]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read as HumanEval.jsonl(.gz): {type(error).__name__}: {error}") from None


def _text(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")


# ---- forms of the prompt, and what of an answer is the completion


@dataclass(frozen=True, slots=True)
class Form:
    """``cuts`` end the answer; ``completion`` takes the rest of the function from it."""

    prompt: Callable[[Problem], Prompt]
    cuts: tuple[str, ...]
    completion: Callable[[Problem, str], str]


def body_in(problem: Problem, text: str) -> str:
    """The body of the function in a chat's answer, else that of any function, else all of it, indented."""
    name = re.escape(problem.entry_point)
    to_dedent = r"(?:\n(?!\n*(?:  |\t))|$)"
    for pattern in (
        rf"```(?:[Pp]ython\n)?.*?def\s+{name}.*?:\n(.*?)\n```",
        rf"def\s+{name}.*?:\n(.*?){to_dedent}",
        rf"def.*?:\n(.*?){to_dedent}",
    ):
        if found := re.search(pattern, text, re.DOTALL):
            return found[1]
    return textwrap.indent(text, " " * 4)


FORMS = {
    "base": Form(lambda problem: (Text(problem.prompt),), CUTS, lambda problem, text: text),
    "chat": Form(lambda problem: chatml(f"{ASKED}{problem.prompt}", (), DEFAULT_SYSTEM), (), body_in),
}


# ---- the commands


def main() -> None:
    args = _arguments()
    try:
        report = {"run": _run, "report": _report, "score": _score}[args.command](args)
    except QwenAgentError as error:
        raise SystemExit(str(error)) from None
    run_report.show(report, markdown(report), args)
    if report["missing"] and not args.partial:
        raise SystemExit(
            f"{len(report['missing'])} problems have no answer, so this is no result of HumanEval: ask for the rest, "
            "or accept it with --partial"
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="ask a model, test what it wrote")
    model_options.add_to(run, max_new_tokens=512)
    run.add_argument("--form", choices=tuple(FORMS), required=True, help="of the prompt")
    report = commands.add_parser("report", help="test what is in logs; no model is needed")
    report.add_argument("logs", type=Path, nargs="+", help="the logs of one run, or of its shards")
    score = commands.add_parser("score", help="test completions made elsewhere")
    score.add_argument("samples", type=Path, help='JSON Lines with "task_id" and "completion"')
    for command in (run, report, score):
        command.add_argument("--data", type=Path, required=True, help="HumanEval.jsonl or HumanEval.jsonl.gz")
        command.add_argument("--seconds", type=float, default=SECONDS, help="for one problem (default: %(default)s)")
        command.add_argument("--jails", type=int, default=1, help="problems that are tested at a time")
        command.add_argument("--partial", action="store_true", help="accept a run that is not complete")
        run_report.add_to(command)
    return parser.parse_args()


def _run(args: argparse.Namespace) -> dict[str, Any]:
    about = {
        "benchmark": BENCHMARK,
        "form": args.form,
        "model": args.model,
        "max_new_tokens": args.max_new_tokens,
        "data": _digest(args.data),
    }
    whole = read(args.data)
    problems = list(part(whole[: args.limit], args.shard))
    answers = collect(_questions(problems, about), model_options.asker(args), args.out, about)
    return _judged(problems, {answer.id: answer for answer in answers}, about, args) | {"whole": len(whole)}


def _report(args: argparse.Namespace) -> dict[str, Any]:
    refusal = "the logs are not of one run of HumanEval: give those of one model and one form"
    about = run_report.the_run_of(args.logs, BENCHMARK, refusal)
    if about["data"] != _digest(args.data):
        raise SystemExit(f"the run had other problems than {args.data}: give its file with --data")
    problems = read(args.data)
    return _judged(problems, recorded(args.logs, _questions(problems, about), about), about, args)


def _score(args: argparse.Namespace) -> dict[str, Any]:
    problems = read(args.data)
    completions: dict[str, str] = {}
    try:
        for row in map(json.loads, filter(str.strip, _text(args.samples).splitlines())):
            completions.setdefault(row["task_id"], row["completion"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{args.samples} cannot be read as samples: {type(error).__name__}: {error}") from None
    if unknown := sorted(completions.keys() - {problem.task_id for problem in problems}):
        raise InputError(f"{args.samples} has completions of {unknown[0]!r}, which is not in {args.data}")
    about = {"benchmark": BENCHMARK, "form": "", "model": str(args.samples), "data": _digest(args.data)}
    return report_on(problems, completions, {}, about, _judge(args))


def _digest(path: Path) -> str:
    """The same for a packed file and a plain one."""
    try:
        return hashlib.sha256(_text(path).encode()).hexdigest()[:16]
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _questions(problems: Sequence[Problem], about: About) -> list[Question]:
    form = FORMS[about["form"]]
    config = GenerationConfig(max_new_tokens=about["max_new_tokens"], stop=form.cuts)
    return [Question(problem.task_id, form.prompt(problem), config, about["form"]) for problem in problems]


def _judged(
    problems: Sequence[Problem], answers: Mapping[str, Answer], about: About, args: argparse.Namespace
) -> dict[str, Any]:
    form = FORMS[about["form"]]
    good = {each.task_id: answers[each.task_id] for each in problems if _is_answer(answers.get(each.task_id))}
    completions = {
        each.task_id: form.completion(each, good[each.task_id].text) for each in problems if each.task_id in good
    }
    return report_on(problems, completions, good, about, _judge(args))


def _is_answer(answer: Answer | None) -> bool:
    return answer is not None and not answer.error


def _judge(args: argparse.Namespace) -> Callable[[Sequence[tuple[Problem, str]]], Iterator[Verdict]]:
    def judged(pairs: Sequence[tuple[Problem, str]]) -> Iterator[Verdict]:
        with ThreadPoolExecutor(args.jails) as pool:
            verdicts = pool.map(lambda pair: passes(*pair, seconds=args.seconds), pairs)
            for number, verdict in enumerate(verdicts, 1):
                if sys.stderr.isatty() or number % 20 == 0 or number == len(pairs):
                    print(f"{number}/{len(pairs)} tested", end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr)
                yield verdict

    return judged


# ---- the report


def report_on(
    problems: Sequence[Problem],
    completions: Mapping[str, str],
    answers: Mapping[str, Answer],
    about: About,
    judged: Callable[[Sequence[tuple[Problem, str]]], Iterator[Verdict]],
) -> dict[str, Any]:
    """All there is to say of completions, as JSON values; problems without one are in ``missing`` and not counted."""
    pairs = [(problem, completions[problem.task_id]) for problem in problems if problem.task_id in completions]
    verdicts = list(judged(pairs))
    rows = [
        {"id": problem.task_id, "passed": verdict.passed, "reason": verdict.reason, "completion": completion}
        for (problem, completion), verdict in zip(pairs, verdicts, strict=True)
    ]
    return {
        **about,
        "whole": len(problems),
        "missing": [problem.task_id for problem in problems if problem.task_id not in completions],
        "pass@1": Share(sum(verdict.passed for verdict in verdicts), len(verdicts)).as_json(),
        "cut": sum(answer.cut for answer in answers.values()),
        "tokens": sum(answer.tokens for answer in answers.values()),
        "reasons": _reasons(verdicts),
        "published": PUBLISHED.get(about["form"], {}),
        "rows": rows,
    }


def _reasons(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Why completions fail: the kinds of errors, the most frequent first."""
    counts: dict[str, int] = {}
    for verdict in verdicts:
        if not verdict.passed:
            kind = verdict.reason.partition(":")[0]
            counts[kind] = counts.get(kind, 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: -pair[1]))


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a table, with the figures of others beside."""
    counted = report["pass@1"]
    lines = []
    if counted["n"] < report["whole"]:
        lines += [f"**{counted['n']} of {report['whole']} problems are answered: no result of HumanEval.**", ""]
    form = f" ({report['form']})" if report["form"] else ""
    lines += [
        f"| HumanEval{form} | pass@1, greedy |",
        "| --- | --- |",
        f"| **{report['model']}** | {Share(counted['hits'], counted['n'])} |",
        *(f"| {name} (published) | {value} % |" for name, value in report["published"].items()),
        "",
        "Failed: " + ("; ".join(f"{kind} {count}" for kind, count in report["reasons"].items()) or "none") + ".",
    ]
    if report["form"]:
        lines.append(f"{report['cut']} answers were cut off at {report['max_new_tokens']} tokens.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
