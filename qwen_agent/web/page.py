"""The page itself, in Gradio: what it shows and what its buttons do. ``mount`` puts it into a FastAPI app.

Each language is a page of its own, so that nothing is translated while somebody reads. What a browser tab shows is the
conversation whose key it made up and sends with every event; nothing else is kept in the browser.
"""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi import FastAPI

from qwen_agent.errors import MissingDependency
from qwen_agent.limits import Limits
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import Runtime
from qwen_agent.prompt import DEFAULT_SYSTEM
from qwen_agent.tools.base import Tool
from qwen_agent.web.conversation import Choices, MakeTools, Place
from qwen_agent.web.conversations import Conversations
from qwen_agent.web.routes import add_routes, head
from qwen_agent.web.shield import Shield
from qwen_agent.web.texts import EXAMPLES, LANGUAGES, Texts

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import: it asks for its newest version there
try:
    import gradio as gr
except ImportError:
    raise MissingDependency("gradio", "webui") from None

from qwen_agent.web.handlers import Handlers  # after the check: it imports Gradio too

MAX_UPLOAD = 20 << 20
_HERE = Path(__file__).parent
_LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]


def no_tools(place: Place) -> tuple[Tool, ...]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PageOptions:
    """What the page offers. ``make_tools`` is called for every conversation, with folders of its own.

    ``switched_on`` names the tools that are on at first (None: all).
    """

    make_tools: MakeTools = no_tools
    switched_on: Sequence[str] | None = None
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    limits: Limits = field(default_factory=Limits)
    system: str = DEFAULT_SYSTEM


def mount(app: FastAPI, runtime: Runtime, options: PageOptions = PageOptions(), *, path: str = "/web") -> Conversations:
    """Put the page into an app, below ``path``; before the app starts, and once. Its files go when the app ends.

    Raises what ``make_tools`` raises.
    """
    tools = _offered(options)
    on = tuple(tool.name for tool in tools if options.switched_on is None or tool.name in options.switched_on)
    conversations = Conversations(
        runtime, options.make_tools, Choices(on, options.generation), system=options.system, limits=options.limits
    )
    # Gradio keeps there what is uploaded and what is shown of files; it reads this whenever it does.
    os.environ["GRADIO_TEMP_DIR"] = str(conversations.root / "shown")
    add_routes(app, conversations, path)
    css = (_HERE / "page.css").read_text(encoding="utf-8")
    for texts in LANGUAGES.values():
        gr.mount_gradio_app(
            app,
            build_page(conversations, tools, texts),
            f"{path}/{texts.code}",
            footer_links=[],
            run_history=False,
            show_error=False,
            max_file_size=MAX_UPLOAD,
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
            theme=_theme(),
            css=css,
        )
    app.add_middleware(Shield, pages={f"{path}/{code}": code for code in LANGUAGES}, head=head())
    return conversations


def build_page(conversations: Conversations, tools: Sequence[Tool], texts: Texts) -> gr.Blocks:
    """The page in one language, with switches for these tools."""
    choices = conversations.choices
    made = choices.generation
    longest = max(64, made.max_new_tokens, min(4096, conversations.runtime.window // 2))
    with gr.Blocks(
        title=texts.title, analytics_enabled=False, fill_height=True, fill_width=True, delete_cache=(3600, 86400)
    ) as page:
        with gr.Row(elem_id="header"):
            _html(_brand(texts, conversations.runtime.name), "brand")
            _html(_language_and_theme(texts), "languages")
            new = gr.Button(texts.new_chat, elem_id="new", size="sm", min_width=0)
        with gr.Column(elem_id="talk"):
            chat = gr.Chatbot(
                elem_id="chat",
                show_label=False,
                container=False,
                layout="bubble",
                height="100%",
                buttons=["copy"],
                editable="user",
                group_consecutive_messages=False,  # in a group with a file, Gradio's editing fails
                placeholder=f"<h2>{texts.welcome}</h2><p>{texts.hint}</p>",
                examples=[{"text": question} for name, question in EXAMPLES if name in choices.tools],
                allow_tags=False,
                latex_delimiters=_LATEX,
                feedback_options=None,
            )
            with gr.Group(elem_id="approval", visible=False) as approval:
                asked = gr.Markdown(elem_id="asked", container=False)
                with gr.Row(elem_id="decision"):
                    refuse = gr.Button(texts.refuse, elem_id="refuse", size="sm")
                    approve = gr.Button(texts.approve, elem_id="approve", size="sm", variant="primary")
            composer = gr.MultimodalTextbox(
                elem_id="composer",
                show_label=False,
                container=False,
                placeholder=texts.placeholder,
                file_count="multiple",
                max_plain_text_length=20_000,
                max_lines=8,
                autofocus=True,
            )
        with gr.Sidebar(texts.settings, elem_id="settings", position="right", open=False, width=320):
            gr.Markdown(f"### {texts.tools}")
            switches = gr.CheckboxGroup(
                [(tool.name_for_human, tool.name) for tool in tools],
                value=list(choices.tools),
                show_label=False,
                container=False,
                elem_id="tools",
            )
            ask = gr.Checkbox(choices.ask, label=texts.ask, info=texts.ask_hint, container=False, elem_id="ask")
            gr.Markdown(f"### {texts.sampling}")
            temperature = gr.Slider(
                0, 2, made.temperature, step=0.05, label=texts.temperature, info=texts.temperature_hint
            )
            top_p = gr.Slider(0.05, 1, made.top_p, step=0.05, label=texts.top_p, info=texts.top_p_hint)
            max_tokens = gr.Slider(
                16, longest, made.max_new_tokens, step=16, label=texts.max_tokens, info=texts.max_tokens_hint
            )
            seed = gr.Number(made.seed, label=texts.seed, info=texts.seed_hint, precision=0, minimum=0, elem_id="seed")
            gr.Markdown(f"### {texts.export}")
            exports = _html("", "exports")

        settings = [switches, ask, temperature, top_p, max_tokens, seed]
        view = [chat, composer, approval, asked]
        do = Handlers(conversations, texts)
        _on(_on(page.load, do.restore, None, [*settings, exports]).then, do.follow, None, view)
        _on(_on(new.click, do.new, None, exports).then, do.follow, None, view)
        _on(_on(composer.submit, do.submit, [composer, *settings], composer).then, do.follow, None, view)
        _on(chat.example_select, do.pick_example, settings, view)
        _on(chat.retry, do.retry, settings, view)
        _on(chat.edit, do.edit, settings, view)
        _on(composer.stop, do.stop)
        _on(approve.click, do.approve, asked)
        _on(refuse.click, do.refuse, asked)
    page.queue(api_open=False, default_concurrency_limit=None, max_size=256)
    return page


def _on(event: Callable[..., Any], handler: Callable[..., Any], inputs: Any = None, outputs: Any = None) -> Any:
    quiet = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "multiple"}
    return event(handler, inputs, outputs, concurrency_limit=None, **quiet)


def _html(text: str, elem_id: str) -> gr.Markdown:
    """The page's own HTML. gr.HTML would evaluate templates in it, which the Content-Security-Policy forbids."""
    return gr.Markdown(text, sanitize_html=False, container=False, elem_id=elem_id)


def _offered(options: PageOptions) -> tuple[Tool, ...]:
    """The tools that a conversation has, made once to see what they are."""
    with TemporaryDirectory(prefix="qwen-agent-web-") as folder:
        place = Place(Path(folder) / "files", Path(folder) / "artifacts")
        place.files.mkdir()
        return tuple(options.make_tools(place))


def _brand(texts: Texts, model: str) -> str:
    return f"<strong>{texts.title}</strong><span>{html.escape(model)}</span>"


def _language_and_theme(texts: Texts) -> str:
    links = "".join(
        f'<a href="../{each.code}/" data-language="{each.code}" data-short="{each.short}" lang="{each.code}"'
        f"{' aria-current=page' if each is texts else ''}>{each.name}</a>"
        for each in LANGUAGES.values()
    )
    toggle = f'<button id="theme" type="button" title="{texts.theme}" aria-label="{texts.theme}">◐</button>'
    return f'<nav aria-label="{texts.language}">{links}</nav>{toggle}'


def _theme() -> gr.themes.Base:
    return gr.themes.Base(
        primary_hue="indigo",
        neutral_hue="zinc",
        radius_size="lg",
        font=["system-ui", "-apple-system", "Segoe UI", "Noto Sans", "Noto Sans CJK SC", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    )
