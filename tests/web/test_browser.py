"""A real browser drives the page. Skipped without playwright or a Chromium."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from talker import PNG

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
PATIENCE = 60_000  # ms; a busy machine is slow, and a test that waits for something ends as soon as it is there


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Tab:
    """A page as a person uses it. Whatever it asks another host for, or fails at, is kept."""

    def __init__(self, context: Any, url: str) -> None:
        self.page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.hosts: set[str] = set()
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)
        self.box = self.page.locator("#composer textarea")
        self.box.wait_for()
        self.chat = self.page.locator("#chat")

    def _said(self, said: Any) -> None:
        leaving = ("AbortError", "errored out")  # a page that is left while something still arrives
        if said.type == "error" and not any(words in said.text for words in leaving):
            self.complaints.append(said.text)

    def ask(self, question: str) -> None:
        self.box.fill(question)
        self.box.press("Enter")

    def sees(self, text: str) -> None:
        self.chat.get_by_text(text).last.wait_for()

    def is_done(self) -> None:
        self.page.locator("#composer .submit-button").wait_for()

    def upload(self, name: str, kind: str, data: bytes) -> None:
        file = {"name": name, "mimeType": kind, "buffer": data}
        self.page.set_input_files("#composer input[type=file]", [file])
        self.page.locator("#composer .thumbnails").wait_for()

    def open_settings(self) -> None:
        self.page.locator("#settings .toggle-button").click()
        self.page.locator("#settings.open").wait_for()


@pytest.fixture
def tab(browser: Any, served: Any) -> Iterator[Tab]:
    context = browser.new_context(viewport={"width": 1180, "height": 800}, locale="en-GB", color_scheme="light")
    found = Tab(context, f"{served.url}/web")
    yield found
    assert found.hosts <= {urlsplit(served.url).netloc, ""}
    assert found.complaints == []
    context.close()


def test_steps_are_seen_and_fold(tab: Tab) -> None:
    assert urlsplit(tab.page.url).path == "/web/en/"
    tab.page.get_by_text("What is 15% of 2,340?").click()  # an example
    tab.chat.locator(".thought-group .content").first.wait_for()
    tab.sees("Used calculator")
    tab.sees("351")
    tab.is_done()
    tab.chat.locator(".thought-group .content").wait_for(state="detached")
    tab.chat.locator(".thought-group .title").click()
    tab.sees("I should compute this.")
    assert '"expression": "2340 * 0.15"' in tab.chat.inner_text()


def test_stop_regenerate_and_edit(tab: Tab) -> None:
    tab.ask("long")
    tab.sees("word word word")
    assert tab.box.input_value() == ""
    tab.page.locator("#composer .stop-button").click()
    tab.sees("Stopped. The agent will not remember this turn.")
    tab.is_done()
    tab.ask("hello")
    tab.sees("You said: hello")
    tab.is_done()
    tab.chat.locator("button[title=Retry]").last.click()
    tab.page.get_by_text("At temperature 0 the answer will be the same").wait_for()
    tab.is_done()
    tab.chat.locator("button[title=Edit]").last.click()
    tab.chat.locator("textarea").fill("goodbye")
    tab.chat.locator("button[title=Submit]").click()
    tab.sees("You said: goodbye")
    assert "You said: hello" not in tab.chat.inner_text()
    assert tab.chat.locator(".user-row").count() == 2


def test_files_go_in_and_out(tab: Tab) -> None:
    tab.upload("table.csv", "text/csv", b"fruit,n\napples,3\npears,4\n")
    tab.ask("What is in table.csv?")
    tab.sees("apples and pears")
    tab.is_done()
    tab.chat.locator(".thought-group .title").first.click()
    tab.sees("apples,3")
    tab.upload("seen.png", "image/png", PNG)
    tab.ask("draw this")
    tab.sees("Here is the picture.")
    for at in (0, 1):
        picture = tab.chat.locator("img").nth(at)
        picture.wait_for()
        tab.page.wait_for_function("image => image.naturalWidth === 96", arg=picture.element_handle())
    tab.is_done()
    tab.chat.locator("button[title=Edit]").last.click()
    tab.chat.locator("textarea").last.fill("draw again")
    tab.chat.locator("button[title=Submit]").click()
    tab.sees("draw again")
    tab.sees("Here is the picture.")
    tab.chat.locator("img").nth(1).wait_for()
    for share in tab.chat.locator("button[title=Share]").all():  # Gradio's, to a host elsewhere
        assert not share.is_visible()


def test_approval_is_asked_for(tab: Tab) -> None:
    for button, title in (("#refuse", "write_file was refused"), ("#approve", "Used write_file")):
        tab.ask("write it down")
        tab.page.locator("#approval").first.wait_for()
        assert "Buy milk" in tab.page.locator("#asked").inner_text()
        tab.page.locator(button).click()
        tab.sees(title)
        tab.is_done()
        tab.page.locator("#approval").first.wait_for(state="hidden")
    with tab.page.expect_download() as download:
        tab.chat.get_by_text("note.txt").last.click()
    assert Path(download.value.path()).read_text() == "Buy milk\nBuy bread\n"


def test_the_conversation_is_exported(tab: Tab) -> None:
    tab.ask("What is 15% of it?")
    tab.sees("351")
    tab.is_done()
    tab.open_settings()
    found = {}
    for name in ("Markdown", "JSON"):
        with tab.page.expect_download() as download:
            tab.page.locator("#exports").get_by_text(name).click()
        assert download.value.suggested_filename == f"conversation.{'md' if name == 'Markdown' else 'json'}"
        found[name] = Path(download.value.path()).read_text()
    assert "What is 15% of it?" in found["Markdown"]
    assert json.loads(found["JSON"])["turns"][0]["answer"] == "351"


def test_a_reload_a_language_and_another_tab(tab: Tab, served: Any) -> None:
    tab.ask("hello")
    tab.sees("You said: hello")
    tab.is_done()
    tab.open_settings()
    tab.page.locator("#tools").get_by_text("Draw").click()
    tab.ask("long")  # goes on while the page is reloaded
    tab.sees("word word")
    tab.page.get_by_role("link", name="日本語").click()
    tab.sees("You said: hello")
    tab.page.locator("#composer .stop-button").click()
    tab.sees("停止しました")
    assert tab.page.locator("html").get_attribute("lang") == "ja"
    assert not tab.page.locator("#tools input[name=draw]").is_checked()
    assert tab.page.locator("#tools input[name=calculator]").is_checked()
    tab.page.reload()
    tab.sees("You said: hello")
    other = Tab(tab.page.context, f"{served.url}/web")
    assert urlsplit(other.page.url).path == "/web/ja/"  # the language is kept, the conversation is the tab's own
    other.page.get_by_text("何をお手伝いしましょうか？").wait_for()
    other.ask("alone")
    other.sees("You said: alone")
    assert "alone" not in tab.chat.inner_text()
    assert other.complaints == []
    tab.page.locator("#new").click()
    tab.page.get_by_text("何をお手伝いしましょうか？").wait_for()
    assert "You said: alone" in other.chat.inner_text()


def test_light_and_dark(tab: Tab, browser: Any, served: Any) -> None:
    def paper(page: Any) -> int:
        colour = page.evaluate("getComputedStyle(document.querySelector('.gradio-container')).backgroundColor")
        return int(colour.removeprefix("rgb(").split(",")[0])

    assert paper(tab.page) > 200
    tab.page.locator("#theme").click()
    assert paper(tab.page) < 60
    tab.page.reload()
    tab.box.wait_for()
    assert paper(tab.page) < 60
    context = browser.new_context(color_scheme="dark", viewport={"width": 390, "height": 800})
    narrow = Tab(context, f"{served.url}/web/en/")
    assert paper(narrow.page) < 60
    assert narrow.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    narrow.open_settings()
    narrow.page.locator("#settings .toggle-button").click()
    context.close()


def test_what_a_model_writes_is_data(tab: Tab) -> None:
    tab.ask("hostile")
    tab.sees("kept as code")
    tab.is_done()
    assert tab.page.evaluate("window.pwned") is None
    assert tab.chat.locator(".bot-row img, .bot-row iframe, .bot-row style, .bot-row script").count() == 0
    assert tab.chat.locator("a[href^='javascript']").count() == 0
    assert "<script>window.pwned=1</script>" in tab.chat.inner_text()


def test_failures_are_readable_and_the_conversation_stays(tab: Tab) -> None:
    tab.ask("hello")
    tab.sees("You said: hello")
    tab.is_done()
    tab.ask("fail")
    tab.sees("failing failed")
    tab.is_done()
    tab.ask("boom")
    tab.sees("Something went wrong inside (RuntimeError)")
    tab.is_done()
    tab.ask("x " * 7000)
    tab.sees("This is too long")
    tab.is_done()
    tab.ask("hello again")
    tab.sees("You said: hello again")
    assert "a secret" not in tab.page.content()
