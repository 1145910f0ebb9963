"""The command line: run, chat, tools, doctor. The only place that prints and that reads the environment."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from qwen_agent import __version__
from qwen_agent.display import Transcript, as_json, loading, summary
from qwen_agent.errors import InputError, QwenAgentError
from qwen_agent.types import AgentResult, Finished, Message, StopReason

TOOL_NAMES = ("calculator", "search", "code_interpreter")
_HELP = {"help_option_names": ["-h", "--help"]}
_NOT_FINISHED = 3  # exit code of a run that ended without an answer of the model's own making


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


def _agent_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        (
            click.option("--model", default="embedded", show_default=True, help="embedded, a folder, or a hub id."),
            click.option("--device", help="cpu or cuda.  [default: cuda if there is one]"),
            click.option("--dtype", help="float32, bfloat16 or float16.  [default: what is fast on the device]"),
            click.option("--offline", is_flag=True, help="Use only models that are already downloaded."),
            click.option("--tools", "tool_names", help="Tools by name, with commas; 'none' for none.  [default: auto]"),
            click.option("--docs", type=click.Path(path_type=Path), help="Folder of text and Markdown for search."),
            click.option("--max-steps", default=8, show_default=True, type=click.IntRange(0), help="Most tool calls."),
            click.option("--max-new-tokens", default=512, show_default=True, type=click.IntRange(1), help="Per step."),
            click.option(
                "--temperature", default=0.0, show_default=True, type=click.FloatRange(0), help="0 is greedy."
            ),
            click.option("--top-p", default=1.0, show_default=True, type=click.FloatRange(0, 1, min_open=True)),
            click.option("--seed", type=int, help="For sampling."),
            click.option("--system", help="The system message."),
        )
    ):
        command = option(command)
    return command


@cli.command()
@click.argument("question")
@_agent_options
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object instead of a transcript.")
def run(question: str, json_output: bool, **options: Any) -> int:
    """Answer QUESTION, using tools where they help.

    The exit code is 0 only if the model reached a final answer by itself.
    """
    if not question.strip():
        raise InputError('the question is empty: qwen-agent run "How tall is the Eiffel Tower?" --docs DIR')
    agent = _build_agent(quiet=json_output, **options)
    result = _show(agent, question, (), quiet=json_output)
    if json_output:
        click.echo(json.dumps(as_json(question, result), ensure_ascii=False, indent=2))
    else:
        click.secho(summary(result), dim=True, err=True)
    return 0 if result.stop_reason is StopReason.FINAL_ANSWER else _NOT_FINISHED


@cli.command()
@_agent_options
def chat(**options: Any) -> None:
    """Talk to the agent. :help lists the commands."""
    from qwen_agent.chat import Chat

    Chat(_build_agent(quiet=False, **options), options["seed"], _show).loop()


@cli.command()
@click.option("--docs", type=click.Path(path_type=Path), help="Folder of text and Markdown for search.")
def tools(docs: Path | None) -> None:
    """List the built-in tools, and what is missing for those that cannot run here."""
    for name in TOOL_NAMES:
        try:
            built = _tool(name, docs)
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


def _show(agent: Any, question: str, history: Sequence[Message], *, quiet: bool = False) -> AgentResult:
    """Stream one run to the terminal and return its result."""
    transcript = Transcript()
    for event in agent.stream(question, history):
        if isinstance(event, Finished):
            if not quiet:
                transcript.end()
            return event.result
        if not quiet:
            transcript.show(event)
    raise AssertionError("a stream of events always ends with Finished")


def _build_agent(
    *,
    quiet: bool,
    model: str,
    device: str | None,
    dtype: str | None,
    offline: bool,
    tool_names: str | None,
    docs: Path | None,
    max_steps: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    system: str | None,
) -> Any:
    # Tools first: a wrong name or folder should not wait for a model to load.
    chosen = [_tool(name, docs, brief=model == "embedded") for name in _chosen_names(tool_names, docs)]
    from qwen_agent.llm.config import GenerationConfig
    from qwen_agent.prompt import DEFAULT_SYSTEM
    from qwen_agent.react import Agent

    generation = GenerationConfig(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    with loading(model, quiet=quiet) as progress:
        from qwen_agent.llm.local import load_runtime

        runtime = load_runtime(model, device=device, dtype=dtype, offline=offline, progress=progress)
    return Agent(runtime, chosen, system=system or DEFAULT_SYSTEM, generation=generation, max_steps=max_steps)


def _chosen_names(asked: str | None, docs: Path | None) -> list[str]:
    if asked is None:
        return ["search", "calculator"] if docs is not None else ["calculator"]
    names = [name.strip() for name in asked.split(",") if name.strip()]
    if names == ["none"]:
        return []
    for name in names:
        if name not in TOOL_NAMES:
            raise InputError(f"there is no tool {name!r}: choose from {', '.join(TOOL_NAMES)}, or 'none'")
    return list(dict.fromkeys(names))


def _tool(name: str, docs: Path | None, *, brief: bool = False) -> Any:
    """A built-in tool by name. ``brief`` is for the embedded model, which reads one short passage better than three."""
    if name == "calculator":
        from qwen_agent.tools.calculator import calculator

        return calculator
    if name == "search":
        from qwen_agent.tools.search import search_documents

        if docs is None:
            raise InputError("search needs a folder of documents: add --docs DIR")
        return search_documents(docs, results=1, chars=120) if brief else search_documents(docs)
    from qwen_agent.tools.code_interpreter import code_interpreter

    return code_interpreter()
