"""The benchmark of Transformers Agents (2023) on our agent, scored to the letter: run mode and chat mode.

    python eval/hf_agent.py run embedded --mode run --out hf_run.jsonl --markdown hf_run.md
    python eval/hf_agent.py run embedded --mode chat --out hf_chat.jsonl
    python eval/hf_agent.py report hf_run.1.jsonl hf_run.2.jsonl --json hf_run.json

Run mode: 11 problems in 27 phrasings (the last two are one, for want of a comma in the original). Chat mode: 11
dialogues in 24 phrasings, 47 steps. The rules and the tasks are described in hf_agent_scoring.py. An agent that does
nothing scores far above zero, so its scores, and those of the right code, are computed and printed beside; so is the
number of tasks whose code was exactly right. With ``--constrained`` the model is held to `code_grammar`; no published
figure was made so.

A run that was ended goes on where it was, from its log. ``report`` makes the tables from one or several logs alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import model_options
import run_report
from answers import About, part
from hf_agent_scoring import TASKS, TOOLS, WRONG_CODE, ChatScorer, Dialogue, Scored, Task, digest, load, scored_run
from in_rounds import Asking, NoAnswer, asked, replayed
from shares import Share

from qwen_agent.errors import QwenAgentError
from qwen_agent.hf_agent_adapter import QwenAgent
from qwen_agent.hf_agent_adapter.code_grammar import code_grammar
from qwen_agent.hf_agent_adapter.transformers_agent import CHAT_STOP, RUN_STOP
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import Runtime

BENCHMARK = "Transformers Agents"
SCORES = ("selection", "used", "code")
# README of Qwen, September 2023 (run mode); Qwen technical report, table 6 (chat mode).
PUBLISHED = {
    "run": {
        "GPT-4": (100.0, 100.0, 97.41),
        "GPT-3.5": (95.37, 96.30, 87.04),
        "StarCoder-15.5B": (87.04, 87.96, 68.89),
        "Qwen-7B-Chat": (90.74, 92.59, 74.07),
    },
    "chat": {"Qwen-7B-Chat v1.1": (94.7, 94.7, 85.1)},
}
DIFFERS = (
    "The published figures were made with bf16 weights on a GPU, transformers of August 2023 and prompts from the hub "
    "(here: those of v4.29.2); 200 tokens are the limit of the agents of transformers, that of Qwen's is not known."
)


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
    run = commands.add_parser("run", help="ask a model, score what it wrote")
    model_options.add_to(run, max_new_tokens=200)
    run.add_argument("--mode", choices=("run", "chat"), required=True)
    run.add_argument("--constrained", action="store_true", help="hold the model to the grammar of code that can be run")
    report = commands.add_parser("report", help="score logs; no model is needed")
    report.add_argument("logs", type=Path, nargs="+", help="the logs of one run, or of its shards")
    report.add_argument("--partial", action="store_true", help="score what is there of a run that is not complete")
    for command in (run, report):
        command.add_argument("--data", type=Path, default=TASKS, help="the tasks (default: those of the original)")
        run_report.add_to(command)
    return parser.parse_args()


def _run(args: argparse.Namespace) -> dict[str, Any]:
    settings = {"constrained": args.constrained, "max_new_tokens": args.max_new_tokens, "data": digest(args.data)}
    about = {"benchmark": BENCHMARK, "mode": args.mode, "model": args.model, **settings}
    whole = load(args.mode, args.data)
    dialogues = list(part(whole[: args.limit], args.shard))
    ends = asked(_programs(dialogues, about), model_options.asker(args), args.out, about, together=len(dialogues))
    return report_on(dialogues, ends, about) | {"whole": _steps(whole)}


def _report(args: argparse.Namespace) -> dict[str, Any]:
    refusal = "the logs are not of one run of this benchmark: give those of one model and one mode"
    about = run_report.the_run_of(args.logs, BENCHMARK, refusal)
    if about["data"] != digest(args.data):
        raise SystemExit(f"the run had other tasks than {args.data}: give its file with --data")
    dialogues = load(about["mode"], args.data)
    ends = replayed(_programs(dialogues, about), args.logs, about, len(dialogues))
    return report_on(dialogues, ends, about) | {"whole": _steps(dialogues)}


def _steps(dialogues: Sequence[Dialogue]) -> int:
    return sum(len(dialogue.steps) for dialogue in dialogues)


# ---- asking


Program = Callable[[Asking], list[Scored]]


def _programs(dialogues: Sequence[Dialogue], about: About) -> dict[str, Program]:
    play = play_run if about["mode"] == "run" else play_chat
    generation = GenerationConfig(max_new_tokens=about["max_new_tokens"])
    return {each.id: partial(play, each, generation=generation, constrained=about["constrained"]) for each in dialogues}


def play_run(
    dialogue: Dialogue, runtime: Runtime, generation: GenerationConfig, constrained: bool = False
) -> list[Scored]:
    """Ask for a task on its own, as ``QwenAgent.run`` would; its scores."""
    [task] = dialogue.steps
    agent = _agent(runtime, generation)
    if constrained:
        agent.generation = replace(generation, grammar=code_grammar("run", TOOLS, task.inputs))
    return [scored_run(task, agent.generate_one(agent.format_prompt(task.text), stop=RUN_STOP))]


def play_chat(
    dialogue: Dialogue, runtime: Runtime, generation: GenerationConfig, constrained: bool = False
) -> list[Scored]:
    """Go through a dialogue as ``QwenAgent.chat`` would; the scores of each step."""
    agent, scorer = _agent(runtime, generation), ChatScorer()
    scored = []
    for task in dialogue.steps:
        if constrained:
            grammar = code_grammar("chat", TOOLS, {**scorer.variables, **task.inputs})
            agent.generation = replace(generation, grammar=grammar)
        prompt = agent.format_prompt(task.text, chat_mode=True)
        written = agent.generate_one(prompt, stop=CHAT_STOP)
        agent.chat_history = f"{prompt}{written}\n"  # the benchmark strips nothing, unlike `chat`
        scored.append(scorer.scored(task, written))
    return scored


def _agent(runtime: Runtime | None, generation: GenerationConfig) -> QwenAgent:
    return QwenAgent(runtime, tools=TOOLS, generation=generation, plain_python=False)


# ---- the report


def report_on(dialogues: Sequence[Dialogue], ends: dict[str, list[Scored] | NoAnswer], about: About) -> dict[str, Any]:
    """All there is to say of a run, as JSON values; what has no answer is in ``missing`` and in no score."""
    missing = {dialogue.id: str(end) for dialogue in dialogues if isinstance(end := ends[dialogue.id], NoAnswer)}
    answered = [dialogue for dialogue in dialogues if dialogue.id not in missing]
    rows = [
        {"id": dialogue.id, **asdict(scored)}
        for dialogue in answered
        if not isinstance(end := ends[dialogue.id], NoAnswer)
        for scored in end
    ]
    exact = Share(sum(row["scores"]["code"] == 1.0 for row in rows), len(rows))
    return {
        **about,
        "tasks": _steps(dialogues),
        "scored": len(rows),
        "missing": missing,
        "unreadable": sum(bool(row["unreadable"]) for row in rows),
        "scores": _sums([row["scores"] for row in rows]),
        "exact": exact.as_json(),
        "floor": _sums([asdict(each.scores) for each in _written_by(nothing, answered, about)]),
        "oracle": _sums([asdict(each.scores) for each in _written_by(oracle, answered, about)]),
        "published": PUBLISHED[about["mode"]],
        "differs": DIFFERS,
        "rows": rows,
    }


def _sums(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: round(sum(each[name] for each in scores), 4) for name in SCORES}


@dataclass(frozen=True, slots=True)
class Writer:
    """Someone who writes an explanation that names tools, and code."""

    tools: Callable[[Task], Sequence[str]]
    code: Callable[[Task], str]


nothing = Writer(lambda task: (), lambda task: "")
oracle = Writer(lambda task: [name for name in TOOLS if name in task.answers[0]], lambda task: task.answers[0])


def _written_by(writer: Writer, dialogues: Sequence[Dialogue], about: About) -> list[Scored]:
    scored = []
    for dialogue in dialogues:
        scorer = ChatScorer()
        for task in dialogue.steps:
            explained = ", ".join(f"`{name}`" for name in writer.tools(task))
            block = f"```py\n{writer.code(task)}\n```"
            if about["mode"] == "run":
                scored.append(scored_run(task, f" tools: {explained}.\n\nAnswer:\n{block}"))
            else:
                scored.append(scorer.scored(task, f"I will use {explained}.\n\n{block}"))
    return scored


def markdown(report: dict[str, Any]) -> str:
    """The report as a table, with the figures of others beside."""
    n, mode, whole = report["scored"], report["mode"], report["whole"]
    lines = []
    if n < whole:
        lines += [f"**{n} of {whole} tasks are answered: these are no results of the benchmark.**", ""]
    held = ", held to a grammar" if report["constrained"] else ""
    exact = Share(report["exact"]["hits"], n)
    lines += [
        f"Transformers Agents, {mode} mode, {n} tasks; {report['model']}, greedy{held}, at most "
        f"{report['max_new_tokens']} tokens.",
        "",
        "| | tool selection | tool used | code | code exactly right |",
        "| --- | --- | --- | --- | --- |",
        _line(f"**{report['model']}**", report["scores"], n, str(exact)),
        _line("floor: an agent that does nothing", report["floor"], n, f"0/{n}"),
        _line("ceiling: the right code", report["oracle"], n, f"{n}/{n}"),
    ]
    whole = _steps(load(mode))
    for name, figures in report["published"].items():
        sums = {score: percent * whole / 100 for score, percent in zip(SCORES, figures, strict=True)}
        lines.append(_line(f"{name} (published)", sums, whole, _exact_of(sums["code"], whole, mode)))
    lines += ["", f"Unreadable answers (the original would have ended): {report['unreadable']} of {n}.", DIFFERS]
    return "\n".join(lines)


def _line(name: str, sums: dict[str, float], n: int, exact: str) -> str:
    cells = [f"{100 * sums[score] / n:.2f} ({sums[score]:.4g}/{n})" if n else "–" for score in SCORES]
    return f"| {name} | {' | '.join(cells)} | {exact} |"


def _exact_of(code: float, n: int, mode: str) -> str:
    """How many of n tasks were exactly right, if all others got what wrong code gets: in a run no value is a dict."""
    if mode == "chat":
        return "–"
    return str(Share(round((code - WRONG_CODE * n) / (1 - WRONG_CODE)), n))


if __name__ == "__main__":
    main()
