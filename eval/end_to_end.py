"""Does the agent get to the right answer? 120 questions with real tools, and exact checks of the final answers.

    python eval/end_to_end.py run embedded --out runs.jsonl                    ask the embedded model; resumed if there
    python eval/end_to_end.py run Qwen/Qwen2.5-7B-Instruct --url http://localhost:8000/v1 --out vllm.jsonl
    python eval/end_to_end.py report runs.jsonl [--markdown OUT] [--json OUT] [--wrong]

60 questions need one tool, 30 need two or three calls, 30 need none (greetings, small facts, things that no tool can
do): there a call makes an answer wrong. The tools are real: search in a small archive about an invented region (so
that nothing in it is known by heart), a folder of files, arithmetic, units, the clock, Python in the sandbox. The set
stands in eval/end_to_end_set; no model may be trained on it. What counts as right is in eval/final_answers.py.

Decoding is greedy unless the options say otherwise. A question whose run failed (a server error, say) is neither
right nor wrong: the next run asks it again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from answers import part, shard, split_torn, truncate_torn
from final_answers import right
from model_options import KEY_VARIABLE
from shares import Share

from qwen_agent import Agent, AgentResult, GenerationConfig, Tool, load_runtime
from qwen_agent.errors import QwenAgentError
from qwen_agent.limits import Limits
from qwen_agent.llm.runtime import Runtime

SET = Path(__file__).parent / "end_to_end_set"
KINDS = {"one": "one tool", "several": "two or three calls", "none": "no tool"}
LIMITS = Limits(steps=6, seconds=180.0)
MAX_ERRORS = 0.02


@dataclass(frozen=True, slots=True)
class Task:
    """A question, the tools it may use, and when an answer to it is right."""

    id: str
    kind: str
    tools: tuple[str, ...]
    question: str
    check: Mapping[str, Any]
    reference: Mapping[str, Any]  # calls that lead to a right answer, and such an answer


def main() -> None:
    args = _arguments()
    if args.command == "run":
        run(args)
    else:
        report(args)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="ask a model, write what it did")
    runs.add_argument("model", help="embedded, a folder or a hub id; with --url the name that the server knows")
    runs.add_argument("--out", type=Path, required=True, help="JSON Lines file, one line a question; resumed if there")
    runs.add_argument("--url", help=f"an OpenAI-compatible endpoint; its key is read from {KEY_VARIABLE}")
    runs.add_argument("--concurrency", type=int, default=8, help="questions at a time, with --url")
    runs.add_argument("--device", help="cpu or cuda")
    runs.add_argument("--kind", choices=KINDS, nargs="+", default=list(KINDS))
    runs.add_argument("--limit", type=int, help="only the first N of each kind")
    runs.add_argument("--shard", type=shard, default=(1, 1), metavar="I/N", help="only the I-th of N parts")
    runs.add_argument("--max-new-tokens", type=int, default=256, help="a step")
    reports = commands.add_parser("report", help="what runs are worth; needs no model")
    reports.add_argument("files", type=Path, nargs="+", help="what `run` wrote, all shards of one run")
    reports.add_argument("--markdown", type=Path, help="write the tables here, too")
    reports.add_argument("--json", type=Path, help="write all figures here")
    reports.add_argument("--wrong", action="store_true", help="show what happened where the answer is wrong")
    reports.add_argument("--partial", action="store_true", help="report a run that has not asked everything")
    return parser.parse_args()


def load(folder: Path = SET) -> list[Task]:
    """All questions, in their order."""
    with (folder / "questions.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [Task(**row | {"tools": tuple(row["tools"])}) for row in rows]


def toolbox(folder: Path = SET) -> dict[str, Tool]:
    """The real tools, over the set's own archive and files."""
    from qwen_agent.tools.catalog import Settings, build_tools

    settings = Settings(docs=folder / "archive", files=folder / "files", brief=True)
    names = ("search", "calculator", "convert_units", "code_interpreter", "files", "current_time")
    return {tool.name: tool for tool in build_tools(names, settings)}


def run_one(task: Task, runtime: Runtime, tools: Mapping[str, Tool], generation: GenerationConfig) -> dict[str, Any]:
    """Ask one question; what happened, as a row of the log."""
    started = time.monotonic()
    agent = Agent(runtime, [tools[name] for name in task.tools], generation=generation, limits=LIMITS)
    try:
        result = agent.run(task.question)
    except QwenAgentError as error:
        return {"id": task.id, "error": f"{type(error).__name__}: {error}"}
    return {
        "id": task.id,
        "error": "",
        "answer": result.answer,
        "stop_reason": result.stop_reason.value,
        "steps": _steps(result),
        "tokens": sum(step.usage.generated_tokens for step in result.steps),
        "seconds": round(time.monotonic() - started, 2),
    }


def _steps(result: AgentResult) -> list[dict[str, Any]]:
    return [
        {"call": step.call.name, "input": step.call.raw, "observation": step.result.content, "ok": step.result.ok}
        for step in result.steps
        if step.call is not None and step.result is not None
    ]


def is_right(task: Task, row: Mapping[str, Any]) -> bool:
    """Whether the final answer passes its check; where no tool is needed, none may have been called."""
    if task.kind == "none" and row["steps"]:
        return False
    observations = [step["observation"] for step in row["steps"]]
    return right(task.check, row["answer"], task.question, observations)


# ---- run ------------------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> None:
    about = {"model": args.model, "url": args.url or "", "max_new_tokens": args.max_new_tokens, "set": digest()}
    done = {row["id"] for row in _rows(args.out, about) if not row["error"]}
    tasks = [task for task in _chosen(args) if task.id not in done]
    generation = GenerationConfig(max_new_tokens=args.max_new_tokens)
    tools = toolbox()
    started = time.monotonic()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    truncate_torn(args.out)
    with args.out.open("a", encoding="utf-8") as out:
        answered = _answered(args, tasks, lambda task, runtime: run_one(task, runtime, tools, generation))
        for count, row in enumerate(answered, 1):
            out.write(json.dumps(row | {"about": about}) + "\n")
            out.flush()
            left = (time.monotonic() - started) / count * (len(tasks) - count)
            print(f"\r{count}/{len(tasks)}  {left:.0f} s left ", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)


def _answered(
    args: argparse.Namespace, tasks: Sequence[Task], ask: Callable[[Task, Runtime], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    if not tasks:
        return
    if not args.url:
        runtime: Runtime = load_runtime(args.model, device=args.device)
        yield from (ask(task, runtime) for task in tasks)
        return
    from qwen_agent.llm.remote import OpenAIRuntime

    remote = OpenAIRuntime(args.url, args.model, api_key=os.environ.get(KEY_VARIABLE))
    with ThreadPoolExecutor(args.concurrency) as pool:
        for future in as_completed([pool.submit(ask, task, remote) for task in tasks]):
            yield future.result()


def _chosen(args: argparse.Namespace) -> Sequence[Task]:
    every = load()
    chosen = [task for kind in args.kind for task in [each for each in every if each.kind == kind][: args.limit]]
    return part(chosen, args.shard)


def digest(folder: Path = SET) -> str:
    """Of all that the questions depend on."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole.update(f"{path.relative_to(folder).as_posix()}\n".encode() + path.read_bytes())
    return whole.hexdigest()[:16]


def _rows(path: Path, about: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """The whole rows of a log; a line that the end of a run tore off is left out."""
    if not path.exists():
        return
    whole, _ = split_torn(path.read_bytes())
    for line in whole.splitlines():
        row = json.loads(line)
        if about is not None and row["about"] != about:
            raise SystemExit(f"{path} holds another run ({row['about']}): give --out a new file")
        yield row


# ---- report ---------------------------------------------------------------------------------------------------------


def report(args: argparse.Namespace) -> None:
    found, about = _of_one_run(args.files)
    tasks = load()
    missing = [task.id for task in tasks if task.id not in found]
    if missing and not args.partial:
        raise SystemExit(
            f"only {len(found)} of {len(tasks)} questions were asked: run the same command again, or add --partial"
        )
    errors = [row for row in found.values() if row["error"]]
    if len(errors) > MAX_ERRORS * len(tasks):
        raise SystemExit(f"{len(errors)} questions have no answer ({errors[0]['error']}): run the same command again")
    judged = [(task, row, is_right(task, row)) for task in tasks if (row := found.get(task.id)) and not row["error"]]
    text = "\n".join(_page(judged, about, len(tasks), len(errors)))
    print(text)
    if args.wrong:
        print(*_wrong(judged), sep="\n")
    if args.markdown:
        args.markdown.write_text(text + "\n", encoding="utf-8")
    if args.json:
        args.json.write_text(json.dumps(_figures(judged, about, len(errors)), indent=2) + "\n", encoding="utf-8")


Judged = Sequence[tuple[Task, dict[str, Any], bool]]


def _of_one_run(files: Sequence[Path]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    about: dict[str, Any] | None = None
    found: dict[str, dict[str, Any]] = {}
    for path in files:
        for row in _rows(path, about):
            about = row["about"]
            if row["id"] not in found or found[row["id"]]["error"]:
                found[row["id"]] = row
    if about is None:
        raise SystemExit(f"there is no run in {', '.join(map(str, files))}")
    if about["set"] != digest():
        raise SystemExit(f"the questions are not those of the run ({about['set']} there, {digest()} here)")
    return found, about


def _page(judged: Judged, about: Mapping[str, Any], total: int, errors: int) -> Iterator[str]:
    asked = f"{len(judged)} of {total} questions, {errors} errors"
    yield f"{about['model']} {about['url']}".strip() + f", {asked}, set {about['set']}."
    yield ""
    yield "| | right final answer | steps | tokens | seconds |"
    yield "|---|---|---|---|---|"
    parts = {name: [x for x in judged if x[0].kind == kind] for kind, name in KINDS.items()} | {"all": judged}
    for name, some in parts.items():
        if some:
            yield f"| {name} | {_share(some)} | {' | '.join(_means(some))} |"


def _share(judged: Judged) -> Share:
    return Share(sum(good for _, _, good in judged), len(judged))


def _means(judged: Judged) -> list[str]:
    rows = [row for _, row, _ in judged]
    sums = (sum(len(row["steps"]) for row in rows), sum(row["tokens"] for row in rows), sum(r["seconds"] for r in rows))
    return [f"{total / len(rows):.1f}" for total in sums]


def _figures(judged: Judged, about: Mapping[str, Any], errors: int) -> dict[str, Any]:
    kinds = {kind: _share([x for x in judged if x[0].kind == kind]).as_json() for kind in KINDS}
    rows = [{"id": task.id, "right": good, "answer": row["answer"]} for task, row, good in judged]
    return {"about": dict(about), "errors": errors, "all": _share(judged).as_json(), **kinds, "rows": rows}


def _wrong(judged: Judged) -> Iterator[str]:
    for task, row, good in judged:
        if not good:
            yield f"\n{task.id}: {task.question}  (wanted: {task.check})"
            yield from (f"  {s['call']} {s['input']!r} -> {s['observation'][:120]!r}" for s in row["steps"])
            yield f"  answer ({row['stop_reason']}): {row['answer']!r}"


if __name__ == "__main__":
    main()
