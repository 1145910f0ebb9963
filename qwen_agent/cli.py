"""The command line: run, chat, resume, replay, tools, mcp, doctor.

The only place that prints and reads the environment.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qwen_agent import __version__
from qwen_agent.assemble import Sources, build_agent, build_tools, rebuild_agent
from qwen_agent.display import Transcript, as_json, ask_person, summary
from qwen_agent.errors import InputError, MissingDependency, QwenAgentError
from qwen_agent.types import AgentResult, Event, Finished, StopReason

if TYPE_CHECKING:
    from qwen_agent.react import Agent
    from qwen_agent.tools.base import Tool
    from qwen_agent.tools.catalog import Settings

_HELP = {"help_option_names": ["-h", "--help"]}
_NOT_FINISHED = 3  # exit code of a run that ended without an answer of the model's own making
_DRIFT = 4  # exit code of a replay that is not what its log says
_WEB_KEYS = ("SERPAPI_KEY", "SERPER_API_KEY", "GOOGLE_CSE_KEY", "GOOGLE_CSE_ID", "SEARXNG_URL")
_IMAGE_KEY = "QWEN_AGENT_IMAGE_KEY"
_VISION_KEY = "QWEN_AGENT_VISION_KEY"


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
    click.option("--kv-cache", type=click.Choice(["int8"]), help="Keep the KV cache in 8 bits (CUDA only)."),
    click.option("--offline", is_flag=True, help="Use only models that are already downloaded."),
)
_folder = click.Path(path_type=Path)
_setting_options = _options(
    click.option("--docs", type=_folder, help="Folder of documents for search."),
    click.option("--files", type=_folder, help="Folder that the tools for files and pictures may read."),
    click.option("--write", is_flag=True, help="Let the tools for files write there, too."),
    click.option("--artifacts", type=_folder, help="Folder to keep pictures and files in that tools make."),
    click.option("--image-model", default="", help="Model that draws: a folder, a hub id, or its name at --image-url."),
    click.option("--image-url", default="", help=f"Service that draws; its key is taken from {_IMAGE_KEY}."),
    click.option("--vision-model", default="", help="Model that sees: a folder, a hub id, or its name at the URL."),
    click.option("--vision-url", default="", help=f"Service that sees; its key is taken from {_VISION_KEY}."),
)
_source_options = _options(
    _setting_options,
    click.option("--unsafe-code", "unsafe", is_flag=True, help="Run code WITHOUT A SANDBOX, with all your rights."),
    click.option("--plugins", default="", metavar="NAMES", help="Tools of installed packages, with commas, or 'all'."),
    click.option(
        "--mcp", "mcp_servers", multiple=True, metavar="SERVER", help="MCP server: a URL, or its command. Repeatable."
    ),
)
_agent_options = _options(
    click.option("--model", default="embedded", show_default=True, help="embedded, a folder, or a hub id."),
    _place_options,
    _source_options,
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
        agent = _with_a_person(build_agent(_tools(stack, options), quiet=json_output, **options))
        events = agent.stream(question)
        with _resumable(log_file):
            result = _show(events if log is None else log.record(events), quiet=json_output)
    return _report(question, result, log_file, json_output)


@cli.command()
@_agent_options
def chat(**options: Any) -> None:
    """Talk to the agent. :help lists the commands."""
    from qwen_agent.chat import Chat

    with contextlib.ExitStack() as stack:
        agent = _with_a_person(build_agent(_tools(stack, options), quiet=False, **options))
        Chat(agent, options["seed"], _show).loop()


@cli.command()
@_log_argument
@click.option("--approve/--refuse", "approved", default=None, help="Decide about the call that the run waits for.")
@click.option("--model", help="Where the model is now.  [default: as in the log]")
@_place_options
@_source_options
@_json_option
def resume(log_file: Path, approved: bool | None, model: str | None, json_output: bool, **options: Any) -> int:
    """Go on with the run of LOG, which was killed, interrupted or paused.

    The agent is built again as the log describes it. Options that say where its tools work or come from (--docs,
    --files, --write, --mcp ...) have to be given again; a log holds none of them.
    """
    from qwen_agent.records.log import RunLog, read_log
    from qwen_agent.records.replay import changes

    past = read_log(log_file)
    past.check_resumable(approved)
    if past.waiting is not None and approved is None and not sys.stdin.isatty():
        raise InputError(f"{log_file}: a call of {past.waiting.name} waits for a decision: add --approve or --refuse")
    chosen = model or past.started.agent["model"]
    with contextlib.ExitStack() as stack:
        sources = _sources(stack, options, brief=chosen == "embedded")
        agent = _with_a_person(rebuild_agent(past.started.agent, sources, quiet=json_output, model=chosen, **options))
        if past.torn:
            click.secho("The last line was half-written; what it said happens again.", dim=True, err=True)
        for change in changes(past, agent):
            click.secho(f"Not as in the log: {change}", fg="yellow", err=True)
        log = stack.enter_context(RunLog.resumed(log_file, approved=approved))
        with _resumable(log_file):
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
@_setting_options
def tools(**options: Any) -> None:
    """List the built-in tools, and what is missing for those that cannot run here."""
    from qwen_agent.tools.catalog import catalog
    from qwen_agent.tools.plugins import installed

    settings = _settings(options, brief=False)
    for entry in catalog().values():
        try:
            built = entry.build(settings)
        except QwenAgentError as error:
            click.echo(f"{click.style(entry.name, bold=True)}: not available: {error}")
            continue
        click.echo(f"{click.style(entry.name, bold=True)}: {entry.summary}")
        for tool in built:
            if tool.name != entry.name:
                click.echo(f"  {tool.name}: {tool.description}")
            for parameter, about in tool.parameters["properties"].items():
                click.echo(f"    {parameter} ({about.get('type', 'any')}): {about.get('description', '')}")
    for name, package in installed().items():
        click.echo(f"{click.style(name, bold=True)}: a plugin of {package}: add --plugins {name}")


@cli.command("mcp")
@click.option("--http", is_flag=True, help="Serve over streamable HTTP.  [default: over stdio]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need a token.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--token-file", type=click.Path(path_type=Path), help="File with the token that clients must send.")
@click.option("--allow-host", "allowed_hosts", multiple=True, metavar="NAME", help="Name of this server. Repeatable.")
@click.option("--with-agent", is_flag=True, help="Serve the agent, too, as the tool 'ask'.")
@_agent_options
def serve_mcp(
    http: bool,
    host: str,
    port: int,
    token_file: Path | None,
    allowed_hosts: tuple[str, ...],
    with_agent: bool,
    **options: Any,
) -> None:
    """Serve the tools to MCP clients, over stdio unless there is --http.

    Without --with-agent no model is loaded, and the options for it do nothing.
    """
    if importlib.util.find_spec("mcp") is None:
        raise MissingDependency("mcp", "mcp")
    token = _token(token_file)
    # Standard output belongs to the protocol: what a plugin prints while it is loaded must not get there.
    with contextlib.ExitStack() as stack:
        with contextlib.redirect_stdout(sys.stderr):
            served = _tools(stack, options, brief=with_agent and options["model"] == "embedded")
            agent = build_agent(served, quiet=False, **options) if with_agent else None
            from qwen_agent.mcp_server import serve
        serve(
            served,
            agent,
            transport="http" if http else "stdio",
            host=host,
            port=port,
            token=token,
            allowed_hosts=allowed_hosts,
            ready=lambda url: click.echo(url, err=True),
        )


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


def _tools(stack: contextlib.ExitStack, options: dict[str, Any], *, brief: bool | None = None) -> list[Tool]:
    """The tools that the options ask for; what says so is taken out of the options."""
    # Before the model is loaded: a wrong name or folder should not wait for that.
    sources = _sources(stack, options, brief=options["model"] == "embedded" if brief is None else brief)
    return build_tools(sources, **{name: options.pop(name) for name in ("tool_names", "ask", "deny")})


def _sources(stack: contextlib.ExitStack, options: dict[str, Any], *, brief: bool) -> Sources:
    settings = _settings(options, brief=brief)
    return Sources(settings, options.pop("plugins"), options.pop("mcp_servers"), stack, _warn)


def _settings(options: dict[str, Any], *, brief: bool) -> Settings:
    """What the options say about built-in tools, taken out of them, with the keys of the environment."""
    from qwen_agent.tools.catalog import Settings

    names = ("docs", "files", "write", "artifacts", "image_model", "image_url", "vision_model", "vision_url", "unsafe")
    return Settings(
        **{name: options.pop(name) for name in names if name in options},
        web={name: os.environ[name] for name in _WEB_KEYS if name in os.environ},
        image_key=os.environ.get(_IMAGE_KEY, ""),
        vision_key=os.environ.get(_VISION_KEY, ""),
        device=options.get("device") or "",
        brief=brief,
    )


def _warn(text: str) -> None:
    click.secho(f"Warning: {text}", fg="red", bold=True, err=True)


def _token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the token cannot be read from {file} ({error})") from None
    if not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(f"{file} holds no token: write one line of letters and digits into it")
    return token


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
