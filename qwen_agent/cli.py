"""The command line: run, chat, serve, resume, replay, tools, mcp, doctor.

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
from qwen_agent.assemble import Elsewhere, Sources, agent_over, build_agent, build_tools, load, rebuild_agent
from qwen_agent.errors import InputError, MissingDependency, QwenAgentError
from qwen_agent.terminal.approval import Person
from qwen_agent.terminal.report import as_json, summary
from qwen_agent.terminal.transcript import Transcript, show_run
from qwen_agent.types import AgentResult, Event, Finished, StopReason

if TYPE_CHECKING:
    from qwen_agent.react import Agent
    from qwen_agent.terminal.screen import Screen
    from qwen_agent.tools.base import Tool
    from qwen_agent.tools.catalog import Settings

_HELP = {"help_option_names": ["-h", "--help"]}
_NOT_FINISHED = 3  # exit code of a run that ended without an answer of the model's own making
_DUMB = ("dumb", "unknown")  # values of TERM; Windows has none
_DRIFT = 4  # exit code of a replay that is not what its log says
_WEB_KEYS = ("SERPAPI_KEY", "SERPER_API_KEY", "GOOGLE_CSE_KEY", "GOOGLE_CSE_ID", "SEARXNG_URL")
_MODEL_KEY = "QWEN_AGENT_API_KEY"
_IMAGE_KEY = "QWEN_AGENT_IMAGE_KEY"
_VISION_KEY = "QWEN_AGENT_VISION_KEY"
_SERVER_KEY = "QWEN_AGENT_SERVER_KEY"
_SERVER_AUTH = "QWEN_AGENT_SERVER_AUTH"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code. Expected errors become one line on stderr."""
    try:
        result = cli.main(args=arguments, prog_name="qwen-agent", standalone_mode=False, color=_colours())
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except QwenAgentError as error:
        click.secho(f"Error: {error}", fg="red", err=True, color=_colours())
        return 1
    except (KeyboardInterrupt, click.Abort):
        click.echo("\nInterrupted.", err=True)
        return 130
    except BrokenPipeError:
        # The reader went away (| head). Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _colours() -> bool | None:
    """False where nobody wants them or the terminal has none; None: wherever there is a terminal."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") in _DUMB else None


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
_url_option = click.option(
    "--url",
    "elsewhere",
    callback=lambda context, option, url: Elsewhere(url, os.environ.get(_MODEL_KEY)) if url else None,
    help=f"OpenAI-compatible endpoint that serves --model, up to /v1; its key is taken from {_MODEL_KEY}.",
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
@_url_option
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
@_url_option
@_agent_options
@click.option("--session", "name", metavar="NAME", help="Save the conversation under this name.  [default: the time]")
@click.option(
    "--resume", "resumed", metavar="[NAME]", is_flag=False, flag_value="last", help="Go on with one: a name, or last."
)
def chat(name: str | None, resumed: str | None, **options: Any) -> None:
    """Talk to the agent. :help lists the commands.

    On a terminal every conversation is saved; without one, only with --session or --resume.
    """
    from dataclasses import replace

    from qwen_agent.terminal.attachments import Attachments, settings_in, working_folder
    from qwen_agent.terminal.chat import Chat
    from qwen_agent.terminal.saved import Saved, state_folder

    if name and resumed:
        raise InputError("--session names a new conversation and --resume goes on with an old one: choose")
    state, past = state_folder(), None
    saved = Saved(state / "conversations")
    if resumed:
        name, past = saved.read(resumed)
        options["system"] = options["system"] or past.system
    elif name:
        name = saved.claim(name)
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    with contextlib.ExitStack() as stack:
        folder = working_folder()
        sources = _sources(stack, options, brief=_is_small(options))
        sources = replace(sources, settings=settings_in(folder, sources.settings))
        chosen = build_tools(sources, **_choice(options))
        agent = _with_a_person(build_agent(chosen, quiet=False, **options))
        screen = _screen(state / "history", on_terminal)
        attachments = Attachments(folder, sources.settings)
        Chat(agent, screen, attachments, saved, name="" if name is None and on_terminal else name, past=past).loop()


@cli.command()
@click.option("--host", "--server-name", default="127.0.0.1", show_default=True, help="Address; others need a key.")
@click.option("--port", "--server-port", default=8000, show_default=True, type=click.IntRange(0, 65535))
@click.option("-c", "--checkpoint-path", "checkpoint", help="The same as --model.")
@click.option("--cpu-only", is_flag=True, help="The same as --device cpu.")
@click.option("--api-key-file", type=_folder, help=f"File with the keys, one a line. Or set {_SERVER_KEY}.")
@click.option("--api-auth", metavar="USER:PASSWORD", help="Seen by every user of this machine: better use the next.")
@click.option("--api-auth-file", type=_folder, help=f"File with USER:PASSWORD, for HTTP Basic. Or set {_SERVER_AUTH}.")
@click.option("--allow-host", "allowed_hosts", multiple=True, metavar="NAME", help="Name of this server. Repeatable.")
@click.option("--allow-origin", "origins", multiple=True, metavar="URL", help="Pages that may use it, too. Repeatable.")
@click.option("--served-name", "names", multiple=True, metavar="NAME", help="What clients call the model. Repeatable.")
@click.option("--active", default=8, show_default=True, type=click.IntRange(1), help="Generations at a time.")
@click.option("--waiting", default=64, show_default=True, type=click.IntRange(0), help="Generations that may wait.")
@click.option("--caches", default=8, show_default=True, type=click.IntRange(0), help="KV caches kept for prefixes.")
@click.option("--request-seconds", default=600.0, show_default=True, type=click.FloatRange(0, min_open=True))
@click.option("--max-body", default=1 << 20, show_default=True, type=click.IntRange(1024), help="Bytes of a request.")
@click.option("--agent", "with_agent", is_flag=True, help="Serve the agent with its tools, as the model react-agent.")
@click.option("--approve-all", is_flag=True, help="Let react-agent make calls that would need a person's approval.")
@click.option("--web", is_flag=True, help="Serve the web page, too, with the tools.")
@click.option("--log-requests/--no-log-requests", default=True, show_default=True, help="To standard error.")
@_agent_options
def serve(
    host: str,
    port: int,
    checkpoint: str | None,
    cpu_only: bool,
    api_key_file: Path | None,
    api_auth: str | None,
    api_auth_file: Path | None,
    allowed_hosts: tuple[str, ...],
    origins: tuple[str, ...],
    names: tuple[str, ...],
    active: int,
    waiting: int,
    caches: int,
    request_seconds: float,
    max_body: int,
    with_agent: bool,
    approve_all: bool,
    web: bool,
    log_requests: bool,
    **options: Any,
) -> None:
    """Serve the model behind OpenAI's API.

    Tools that clients send are never run here. --temperature, --top-p and --seed are for requests that do not say;
    the options for tools and steps are for --agent and --web, and do nothing without.
    """
    from qwen_agent.server.launch import WEB, check_installed, launch

    check_installed(web=web)
    from dataclasses import replace

    from qwen_agent.server.security import listen
    from qwen_agent.server.settings import Settings as ServerSettings
    from qwen_agent.serving import credentials, log_to_stderr, page_options

    if checkpoint is not None:
        options["model"] = checkpoint
    if cpu_only:
        options["device"] = "cpu"
    if api_auth is not None:
        _warn("every user of this machine can read a password on the command line: use --api-auth-file")
    auth = api_auth if api_auth is not None else os.environ.get(_SERVER_AUTH)
    settings = ServerSettings(
        host=host,
        credentials=credentials(api_key_file, os.environ.get(_SERVER_KEY), api_auth_file, auth),
        allowed_hosts=allowed_hosts,
        allowed_origins=origins,
        names=names or (Path(options["model"]).name,),
        body=max_body,
        seconds=request_seconds,
    )
    log_to_stderr(requests=log_requests)
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(listen(host, port))
        sources, choice = _sources(stack, options, brief=options["model"] == "embedded"), _choice(options)
        tools = build_tools(sources, **choice) if with_agent else []
        place = {name: options.pop(name) for name in ("model", "device", "dtype", "kv_cache", "offline")}
        runtime = load(**place, quiet=False, kept_caches=caches)
        agent = agent_over(runtime, tools, **options)
        if approve_all:
            agent = replace(agent, approve=lambda call: True)
        launch(
            listening,
            runtime,
            settings,
            defaults=replace(agent.generation, max_new_tokens=runtime.window),
            agent=(lambda shared: replace(agent, runtime=shared)) if with_agent else None,
            page=page_options(agent, sources, **choice) if web else None,
            active=active,
            waiting=waiting,
            ready=lambda url: click.echo(
                f"Serving {', '.join(settings.names)} at {url}/v1{f', the page at {url}{WEB}' if web else ''}", err=True
            ),
        )


@cli.command()
@_log_argument
@click.option("--approve/--refuse", "approved", default=None, help="Decide about the call that the run waits for.")
@click.option("--model", help="Where the model is now.  [default: as in the log]")
@_url_option
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
        sources = _sources(stack, options, brief=_is_small({**options, "model": chosen}))
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


def _is_small(options: dict[str, Any]) -> bool:
    """Whether the model that the options ask for reads little, so that tools should be brief."""
    return options["model"] == "embedded" and options.get("elsewhere") is None


def _tools(stack: contextlib.ExitStack, options: dict[str, Any], *, brief: bool | None = None) -> list[Tool]:
    """The tools that the options ask for; what says so is taken out of the options."""
    # Before the model is loaded: a wrong name or folder should not wait for that.
    sources = _sources(stack, options, brief=_is_small(options) if brief is None else brief)
    return build_tools(sources, **_choice(options))


def _choice(options: dict[str, Any]) -> dict[str, Any]:
    """What the options say about which tools there are, taken out of them."""
    return {name: options.pop(name) for name in ("tool_names", "ask", "deny")}


def _screen(history: Path, on_terminal: bool) -> Screen:
    from qwen_agent.terminal.screen import PlainScreen, enable_line_editing

    if on_terminal and os.environ.get("TERM") not in _DUMB:
        from qwen_agent.terminal.rich_screen import RichScreen

        return RichScreen(history)
    enable_line_editing()
    return PlainScreen()


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

    return replace(agent, approve=Person()) if sys.stdin.isatty() else agent


def _show(events: Iterable[Event], *, quiet: bool = False) -> AgentResult:
    """Stream one run to the terminal and return its result."""
    if not quiet:
        return show_run(events)
    *_, last = events
    assert isinstance(last, Finished)
    return last.result


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
