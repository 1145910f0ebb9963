"""The command line: run, chat, resume, replay, tools, doctor. The only place that prints and reads the environment."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qwen_agent import __version__
from qwen_agent.assemble import TOOL_NAMES, build_agent, builtin_tool, rebuild_agent
from qwen_agent.display import Transcript, as_json, ask_person, summary
from qwen_agent.errors import InputError, QwenAgentError
from qwen_agent.types import AgentResult, Event, Finished, StopReason

if TYPE_CHECKING:
    from qwen_agent.react import Agent

_HELP = {"help_option_names": ["-h", "--help"]}
_NOT_FINISHED = 3  # exit code of a run that ended without an answer of the model's own making
_DRIFT = 4  # exit code of a replay that is not what its log says


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code. Expected errors become one line on stderr."""
    try:
        result = cli.main(args=arguments, prog_name="qwen-agent", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except QwenAgentError as error:
        click.secho(f"Error: {error}", fg="red", err=True)
        return 1
    except (KeyboardInterrupt, click.Abort):
        click.echo("\nInterrupted.", err=True)
        return 130
    except BrokenPipeError:
        # The reader went away (| head). Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


@click.group(context_settings=_HELP)
@click.version_option(__version__, prog_name="qwen-agent")
def cli() -> None:
    """A tool-using ReAct agent on your own machine."""


Command = Callable[..., Any]


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_place_options = _options(
    click.option("--device", help="cpu or cuda.  [default: cuda if there is one]"),
    click.option("--dtype", help="float32, bfloat16 or float16.  [default: what is fast on the device]"),
    click.option("--offline", is_flag=True, help="Use only models that are already downloaded."),
    click.option("--docs", type=click.Path(path_type=Path), help="Folder of text and Markdown for search."),
)
_agent_options = _options(
    click.option("--model", default="embedded", show_default=True, help="embedded, a folder, or a hub id."),
    _place_options,
    click.option("--tools", "tool_names", help="Tools by name, with commas; 'none' for none.  [default: auto]"),
    click.option("--ask", multiple=True, metavar="TOOL", help="Ask before each call of this tool. Repeatable."),
    click.option("--deny", multiple=True, metavar="TOOL", help="Refuse each call of this tool. Repeatable."),
    click.option("--max-steps", default=8, show_default=True, type=click.IntRange(0), help="Most steps with a call."),
    click.option("--max-tool-calls", type=click.IntRange(0), help="Most calls that reach a tool.  [default: no limit]"),
    click.option("--max-seconds", type=click.FloatRange(0), help="Then it has to answer.  [default: no limit]"),
    click.option("--max-new-tokens", default=512, show_default=True, type=click.IntRange(1), help="Per step."),
    click.option("--temperature", default=0.0, show_default=True, type=click.FloatRange(0), help="0 is greedy."),
    click.option("--top-p", default=1.0, show_default=True, type=click.FloatRange(0, 1, min_open=True)),
    click.option("--seed", type=int, help="For sampling."),
    click.option("--system", help="The system message."),
)
_json_option = click.option(
    "--json", "json_output", is_flag=True, help="Print one JSON object instead of a transcript."
)
_log_argument = click.argument("log_file", metavar="LOG", type=click.Path(path_type=Path))


@cli.command()
@click.argument("question")
@_agent_options
@click.option("--log", "log_file", type=click.Path(path_type=Path), help="Write the run to this file as it happens.")
@_json_option
def run(question: str, log_file: Path | None, json_output: bool, **options: Any) -> int:
    """Answer QUESTION, using tools where they help.

    The exit code is 0 only if the model reached a final answer by itself.
    """
    if not question.strip():
        raise InputError('the question is empty: qwen-agent run "How tall is the Eiffel Tower?" --docs DIR')
    with contextlib.ExitStack() as stack:
        log = None
        if log_file is not None:
            from qwen_agent.records.log import RunLog

            log = stack.enter_context(RunLog(log_file))
        agent = _with_a_person(build_agent(quiet=json_output, **options))
        events = agent.stream(question)
        with _resumable(log_file):
            result = _show(events if log is None else log.record(events), quiet=json_output)
    return _report(question, result, log_file, json_output)


@cli.command()
@_agent_options
def chat(**options: Any) -> None:
    """Talk to the agent. :help lists the commands."""
    from qwen_agent.chat import Chat

    Chat(_with_a_person(build_agent(quiet=False, **options)), options["seed"], _show).loop()


@cli.command()
@_log_argument
@click.option("--approve/--refuse", "approved", default=None, help="Decide about the call that the run waits for.")
@click.option("--model", help="Where the model is now.  [default: as in the log]")
@_place_options
@_json_option
def resume(log_file: Path, approved: bool | None, json_output: bool, **options: Any) -> int:
    """Go on with the run of LOG, which was killed, interrupted or paused.

    The agent is built again as the log describes it; --docs has to be given again.
    """
    from qwen_agent.records.log import RunLog, read_log
    from qwen_agent.records.replay import changes

    past = read_log(log_file)
    past.check_resumable(approved)
    if past.waiting is not None and approved is None and not sys.stdin.isatty():
        raise InputError(f"{log_file}: a call of {past.waiting.name} waits for a decision: add --approve or --refuse")
    agent = _with_a_person(rebuild_agent(past.started.agent, quiet=json_output, **options))
    if past.torn:
        click.secho("The last line was half-written; what it said happens again.", dim=True, err=True)
    for change in changes(past, agent):
        click.secho(f"Not as in the log: {change}", fg="yellow", err=True)
    with RunLog.resumed(log_file, approved=approved) as log, _resumable(log_file):
        result = _show(log.record(agent.resume(log.facts)), quiet=json_output)
    return _report(past.started.question, result, log_file, json_output)


@cli.command()
@_log_argument
@click.option("--lenient", is_flag=True, help="Go on where the run parts from its log, with what fits best.")
@_json_option
def replay(log_file: Path, lenient: bool, json_output: bool) -> int:
    """Repeat the run of LOG without its model and tools, and say where this version does something else.

    The exit code is 0 if it repeats itself and 4 if it does not.
    """
    from qwen_agent.records.log import read_log
    from qwen_agent.records.replay import replay as repeat

    log = read_log(log_file)
    done = repeat(log, strict=not lenient)
    if json_output:
        run = as_json(log.started.question, done.result) if done.result is not None else None
        drift = [{name: getattr(entry, name) for name in entry.__slots__} for entry in done.drift]
        click.echo(json.dumps({"same": done.same, "drift": drift, "run": run}, ensure_ascii=False, indent=2))
    else:
        _print(done.events)
        click.secho(done.report(), err=True, **({"dim": True} if done.same else {"fg": "yellow"}))
    return 0 if done.same else _DRIFT


@cli.command()
@click.option("--docs", type=click.Path(path_type=Path), help="Folder of text and Markdown for search.")
def tools(docs: Path | None) -> None:
    """List the built-in tools, and what is missing for those that cannot run here."""
    for name in TOOL_NAMES:
        try:
            built = builtin_tool(name, docs)
        except QwenAgentError as error:
            click.echo(f"{click.style(name, bold=True)}: not available: {error}")
            continue
        click.echo(f"{click.style(name, bold=True)}: {built.description}")
        for parameter, entry in built.parameters["properties"].items():
            click.echo(f"    {parameter} ({entry.get('type', 'any')}): {entry.get('description', '')}")


@cli.command()
def doctor() -> int:
    """Check what works on this machine and how to fix the rest."""
    from qwen_agent.doctor import checks

    worst = 0
    for check in checks():
        mark = click.style("ok  ", fg="green") if check.ok else click.style("no  ", fg="yellow")
        click.echo(f"{mark}{check.what}: {check.found}")
        if check.fix:
            click.echo(f"      fix: {check.fix}")
        worst = max(worst, 0 if check.ok or not check.needed else 1)
    return worst


def _with_a_person(agent: Agent) -> Agent:
    """The agent, which asks on the terminal before calls that need it. Without a terminal its run pauses there."""
    from dataclasses import replace

    return replace(agent, approve=ask_person) if sys.stdin.isatty() else agent


def _show(events: Iterable[Event], *, quiet: bool = False) -> AgentResult:
    """Stream one run to the terminal and return its result."""
    transcript = Transcript()
    for event in events:
        if not quiet:
            transcript.show(event)
        if isinstance(event, Finished):
            return event.result
    raise AssertionError("a stream of events always ends with Finished")


def _print(events: Iterable[Event]) -> None:
    """Print a run that may have been broken off."""
    transcript = Transcript()
    for event in events:
        transcript.show(event)
    transcript.end()


def _report(question: str, result: AgentResult, log_file: Path | None, json_output: bool) -> int:
    if json_output:
        click.echo(json.dumps(as_json(question, result), ensure_ascii=False, indent=2))
    else:
        click.secho(summary(result), dim=True, err=True)
    if result.stop_reason is StopReason.PAUSED:
        command = f"qwen-agent resume {log_file} --approve (or --refuse)"
        hint = f"go on with: {command}" if log_file else "with --log FILE it could be gone on with"
        click.echo(
            f"Paused before a call that needs your approval, and there is no terminal to ask on; {hint}", err=True
        )
    return 0 if result.stop_reason is StopReason.FINAL_ANSWER else _NOT_FINISHED


@contextlib.contextmanager
def _resumable(log_file: Path | None) -> Any:
    try:
        yield
    except (KeyboardInterrupt, click.Abort):
        if log_file is not None:
            click.echo(f"\nGo on with: qwen-agent resume {log_file}", err=True, nl=False)
        raise
