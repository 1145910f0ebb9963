"""The code interpreter benchmark: how much of the code that a model writes can be run, and how many answers are right.

    python eval/code_interpreter.py run embedded --out code.jsonl --markdown code.md
    python eval/code_interpreter.py run Qwen/Qwen-7B-Chat --original eval_code_interpreter_v1.jsonl \\
        --uploads upload_file_clean --out original.jsonl
    python eval/code_interpreter.py report code.1.jsonl code.2.jsonl

Without ``--original``: our own tasks (code_tasks.jsonl: math, data, text and dates, in English and Chinese, with files)
by our agent with the tool code_interpreter, in at most --steps steps. Executable: the last code ran without an error.
Right: an exact check of the answer, or of the file that was made (code_tasks.py).

With it: Qwen-Agent's benchmark of 2023, from its file, with its prompt and its loop (original_code_tasks.py). It is not
public any more. Its executable rate is computed; whether a picture shows what was asked for was judged by a model that
sees, which is not done here: that a picture was made is counted instead. Its accuracy on math is that of GSM8K.

All code runs in the sandbox. A run that was ended goes on where it was; code is then run again, no question is asked
twice. ``report`` makes the tables from logs: it runs the code, and needs no model.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import code_tasks
import model_options
import original_code_tasks as original
import run_report
from answers import About, part
from code_tasks import CodeTask, is_right
from in_rounds import Asking, NoAnswer, asked, replayed
from shares import Share

from qwen_agent.errors import InputError, QwenAgentError
from qwen_agent.limits import Limits as Budgets
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import Runtime
from qwen_agent.react import Agent
from qwen_agent.tools.beneath import Folder
from qwen_agent.tools.code_interpreter import code_interpreter
from qwen_agent.tools.sandbox import Limits, Sandbox, open_sandbox
from qwen_agent.tools.sandbox.policy import MIB
from qwen_agent.types import AgentResult

BENCHMARK = "code interpreter"
LIMITS = Limits(seconds=original.SECONDS, memory=1024 * MIB)
TOGETHER = 8  # sandboxes at a time
PUBLISHED = {"Qwen-7B-Chat (September 2023)": {"math": 82.4, "visualization": 64.4, "general": 67.2}}  # executable, %
Row = dict[str, Any]
Program = Callable[[Asking], Row]


def main() -> None:
    args = _arguments()
    try:
        report = _run(args) if args.command == "run" else _report(args)
    except QwenAgentError as error:
        raise SystemExit(str(error)) from None
    run_report.show(report, markdown(report), args)
    if report["missing"] and not (args.command == "report" and args.partial):
        raise SystemExit(f"{len(report['missing'])} tasks have no answer: run the same command again, it asks the rest")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="ask a model, run what it wrote")
    model_options.add_to(run, max_new_tokens=512)
    run.add_argument("--steps", type=int, default=4, help="of our agent (default: %(default)s)")
    report = commands.add_parser("report", help="run what is in logs; no model is needed")
    report.add_argument("logs", type=Path, nargs="+", help="the logs of one run, or of its shards")
    report.add_argument("--partial", action="store_true", help="count what is there of a run that is not complete")
    for command in (run, report):
        command.add_argument("--original", type=Path, help="eval_code_interpreter_v1.jsonl, instead of our own tasks")
        command.add_argument("--uploads", type=Path, default=Path(), help="the folder of its files")
        command.add_argument("--data", type=Path, default=code_tasks.TASKS, help="own tasks of the same form")
        run_report.add_to(command)
    return parser.parse_args()


def _run(args: argparse.Namespace) -> dict[str, Any]:
    about = {
        "benchmark": BENCHMARK,
        "set": "original" if args.original else "own",
        "model": args.model,
        "max_new_tokens": args.max_new_tokens,
        "steps": 0 if args.original else args.steps,
        "data": _digest(args),
    }
    programs = _programs(args, about)
    chosen = {name: programs[name] for name in part(list(programs)[: args.limit], args.shard)}
    ends = asked(chosen, model_options.asker(args), args.out, about, TOGETHER)
    return report_on(ends, about) | {"whole": len(programs)}


def _report(args: argparse.Namespace) -> dict[str, Any]:
    refusal = "the logs are not of one run of this benchmark: give those of one model and one set"
    about = run_report.the_run_of(args.logs, BENCHMARK, refusal)
    if about["data"] != _digest(args):
        raise SystemExit("the run had other tasks: give their file with --original or --data")
    return report_on(replayed(_programs(args, about), args.logs, about, TOGETHER), about)


def _digest(args: argparse.Namespace) -> str:
    path = args.original or args.data
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _programs(args: argparse.Namespace, about: About) -> dict[str, Program]:
    generation = GenerationConfig(max_new_tokens=about["max_new_tokens"])
    if args.original:
        items = original.load(args.original, args.uploads)
        return {item.id: partial(go_through, item, args.uploads, generation=generation) for item in items}
    budgets = Budgets(steps=about["steps"], tokens=about["steps"] * about["max_new_tokens"])
    return {
        task.id: partial(solve, task, generation=generation, budgets=budgets) for task in code_tasks.load(args.data)
    }


# ---- our own tasks


def solve(task: CodeTask, runtime: Runtime, generation: GenerationConfig, budgets: Budgets) -> Row:
    """Let our agent do a task, and check what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in task.files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        tool = code_interpreter(limits=LIMITS, uploads=[Path(folder) / name for name in task.files])
        result = Agent(runtime, [tool], generation=generation, limits=budgets).run(task.question)
        made = _made(result)
    calls = [step for step in result.steps if step.call is not None]
    ran = [step.result is not None and step.result.ok for step in calls]
    return {
        "id": task.id,
        "group": task.group,
        "lang": task.lang,
        "code": bool(calls),
        "executable": bool(ran) and ran[-1],
        "right": is_right(task.check, result.answer, made),
        "pictures": sum(name.endswith(".png") for name in made),
        "calls": len(calls),
        "calls_that_ran": sum(ran),
        "answer": result.answer,
        "stop_reason": result.stop_reason.value,
        "codes": [step.call.raw for step in calls if step.call],
        "observations": [step.result.content for step in calls if step.result],
    }


def _made(result: AgentResult) -> dict[str, bytes]:
    """The files that a run made, by name, as they were in the end."""
    made = {}
    for artifact in (each for step in result.steps if step.result for each in step.result.artifacts):
        path = Path(artifact.path)
        with contextlib.suppress(InputError, OSError):  # code may have put something else in its place
            made[path.name] = Folder(path.parent).read(path.name, LIMITS.file)
    return made


# ---- the original's


def go_through(item: original.Item, uploads: Path, runtime: Runtime, generation: GenerationConfig) -> Row:
    """Go through the original's loop with an item, and judge its code."""
    stopped = GenerationConfig(max_new_tokens=generation.max_new_tokens, stop=original.STOPS)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        fresh = partial(_with_files, Path(folder), item, uploads)
        sandbox = fresh()
        try:
            trajectory = original.follow(item, runtime, sandbox, stopped)
        finally:
            sandbox.close()
        judged = original.judge(item, trajectory.codes, fresh)
    return {
        "id": item.id,
        "group": item.group,
        "lang": item.lang,
        "code": bool(trajectory.codes),
        "executable": judged.executable,
        "pictures": judged.pictures,
        "problem": judged.problem,
        "codes": list(trajectory.codes),
        "text": trajectory.text,
    }


def _with_files(folder: Path, item: original.Item, uploads: Path) -> Sandbox:
    """A new sandbox with its own copies of an item's files."""
    workdir = Path(tempfile.mkdtemp(dir=folder))
    for name in item.files:
        shutil.copyfile(uploads / name, workdir / name)
    return open_sandbox(workdir, LIMITS)


# ---- the report


def report_on(ends: Mapping[str, Row | NoAnswer], about: About) -> dict[str, Any]:
    """All there is to say of a run, as JSON values; tasks without an answer are in ``missing`` and not counted."""
    rows = [end for end in ends.values() if not isinstance(end, NoAnswer)]
    rows.sort(key=lambda row: row["id"])
    groups = {name: _counted(each) for name, each in _grouped(rows)}
    return {
        **about,
        "whole": len(ends),
        "missing": {name: str(end) for name, end in ends.items() if isinstance(end, NoAnswer)},
        "groups": groups,
        "published": PUBLISHED if about["set"] == "original" else {},
        "rows": rows,
    }


def _grouped(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    for group in dict.fromkeys(row["group"] for row in rows):
        yield group, [row for row in rows if row["group"] == group]
    yield "all", list(rows)


def _counted(rows: Sequence[Row]) -> dict[str, Any]:
    names = ("code", "executable", "right") if rows and "right" in rows[0] else ("code", "executable")
    counted: dict[str, Any] = {name: Share(sum(row[name] for row in rows), len(rows)).as_json() for name in names}
    return counted | {"pictures": sum(row["pictures"] > 0 for row in rows)}


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a table, with the figures of others beside."""
    groups, own = report["groups"], report["set"] == "own"
    lines = []
    if len(report["rows"]) < report["whole"]:
        n = f"{len(report['rows'])} of {report['whole']}"
        lines += [f"**{n} tasks are answered: these are no results of the benchmark.**", ""]
    how = f"our agent, {report['steps']} steps" if own else "the original's loop"
    lines += [
        f"Code interpreter, {'our own tasks' if own else 'the original tasks'}; {report['model']}, greedy, {how}.",
        "",
        f"| | wrote code | executable |{' right |' if own else ''} made a picture |",
        f"| --- | --- | --- |{' --- |' if own else ''} --- |",
    ]
    for name, counted in groups.items():
        cells = [str(Share(counted[key]["hits"], counted[key]["n"])) for key in counted if key != "pictures"]
        lines.append(f"| {name} | {' | '.join(cells)} | {counted['pictures']} |")
    if report["published"]:
        lines += ["", "Executable, published, %: " + "; ".join(f"{name} {rates}" for name, rates in PUBLISHED.items())]
    lines += ["", "Whether a picture shows what was asked for is not judged: that takes a model that sees."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
