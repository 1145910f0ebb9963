import doctest
import gzip
import json
from pathlib import Path

import pytest

from qwen_agent.errors import MissingDependency
from qwen_agent.tools import web_page as module

pytest.importorskip("lxml")
from qwen_agent.tools.web_page import split_pages, web_page

PUBLIC = "93.184.216.34"
SENTENCE = "The tower is made of wrought iron and stands beside the river. "


@pytest.fixture
def page():
    return web_page(allow_private=True)


def content(tool, url, **more) -> str:
    result = tool.invoke({"url": url, **more})
    assert result.ok, result.content
    return result.content


def failure(tool, url, **more) -> str:
    result = tool.invoke({"url": url, **more})
    assert not result.ok and "\n" not in result.content
    return result.content


def test_a_page_as_text(server, page):
    server.page("/tower", "<title>The Tower</title><nav>Menu</nav><h1>Tower</h1><p>It is <b>330</b> metres tall.")
    assert content(page, f"{server.url}/tower") == (
        f"# The Tower\n{server.url}/tower\n\n# Tower\n\nIt is 330 metres tall."
    )


def test_a_title_is_not_said_twice(server, page):
    server.page("/", "<title>Tower</title><h1>Tower</h1><p>Tall.")
    assert content(page, server.url + "/") == f"# Tower\n{server.url}/\n\nTall."


def test_a_long_page_is_read_in_parts(server):
    page = web_page(allow_private=True, chars=1000)
    server.page("/", "<title>T</title>" + "".join(f"<h2>Part {n}</h2><p>{SENTENCE * 10}</p>" for n in range(5)))
    first = content(page, server.url + "/")
    assert first.startswith("# T\n") and "## Part 0" in first and "## Part 1" not in first
    assert first.endswith("\n\n(page 1 of 5: page=2 reads on)")
    assert content(page, server.url + "/", page=5).endswith("\n\n(page 5 of 5)")
    assert "## Part 2" in content(page, server.url + "/", page="3")
    assert failure(page, server.url + "/", page=6) == "There is no page 6: the text has 5 pages."
    assert "no page 0" in failure(page, server.url + "/", page=0)
    assert len(server.asked) == 2  # 0 is no part of a reading before


def test_the_parts_are_from_one_reading(server):
    page = web_page(allow_private=True, chars=200)
    server.page("/", "old " * 200)
    content(page, server.url + "/")
    server.page("/", "new " * 200)
    assert "old" in content(page, server.url + "/", page=2)
    assert "new" in content(page, server.url + "/")
    assert "new" in content(page, server.url + "/", page=2)
    assert len(server.asked) == 2


def test_only_a_few_readings_are_remembered(server):
    page = web_page(allow_private=True, chars=200)
    for name in "abcdef":
        server.page(f"/{name}", "word " * 100)
        content(page, f"{server.url}/{name}")
    content(page, f"{server.url}/f", page=2)
    assert len(server.asked) == 6
    content(page, f"{server.url}/a", page=2)
    assert len(server.asked) == 7


def test_links_when_they_are_wanted(server):
    page = web_page(allow_private=True, links=True, chars=335)
    server.page("/", f'<title>T</title><p>See <a href="/a">one</a>. {SENTENCE * 5}</p><p>And <a href="b">two</a>.</p>')
    first = content(page, server.url + "/")
    assert "See one [1]." in first and f"\n\n[1] {server.url}/a\n\n(page 1 of 2" in first and "/b" not in first
    assert f"And two [2].\n\n[2] {server.url}/b" in content(page, server.url + "/", page=2)


def test_a_redirected_page_says_where_it_is(server, page):
    server.page("/old", status="301 Moved Permanently", Location="/new")
    server.page("/new", "hello")
    assert content(page, f"{server.url}/old") == f"{server.url}/new\n\nhello"


def test_a_pdf(server, page, pdf):
    pytest.importorskip("pypdf")
    data = pdf("The bridge is 1,280 metres long.", "It was opened in 1937.", title="The Bridge")
    for kind in ("application/pdf", "application/octet-stream", ""):
        server.page("/a.pdf", data, kind=kind)
        if kind == "application/octet-stream":
            assert "application/octet-stream, which cannot be read" in failure(page, f"{server.url}/a.pdf")
            continue
        assert content(page, f"{server.url}/a.pdf") == (
            f"# The Bridge\n{server.url}/a.pdf\n\n## Page 1\n\nThe bridge is 1,280 metres long.\n\n"
            "## Page 2\n\nIt was opened in 1937."
        )
    server.page("/scan.pdf", pdf("", ""), kind="application/pdf")
    assert "PDF that cannot be read: without text" in failure(page, f"{server.url}/scan.pdf")


def test_a_pdf_that_is_too_large(server, page, pdf, monkeypatch):
    monkeypatch.setattr(module, "_MAX_BYTES", 500)
    server.page("/a.pdf", pdf("hello"), kind="application/pdf")
    assert "PDF of more than" in failure(page, f"{server.url}/a.pdf")


@pytest.mark.parametrize(
    "kind, body",
    [
        ("text/plain", "# a\n  b < c"),
        ("application/json", '{"a": [1, 2]}'),
        ("text/csv; charset=utf-8", "a,b\n1,2"),
        ("application/xml", "<a>b</a>"),
        ("", "plain words"),
    ],
)
def test_other_text_stays_as_it_is(server, page, kind, body):
    server.page("/", body, kind=kind)
    assert content(page, server.url + "/") == f"{server.url}/\n\n{body}"


def test_html_without_a_content_type(server, page):
    server.page("/", "\n<!DOCTYPE html><p>hello <b>you</b>", kind="")
    assert content(page, server.url + "/") == f"{server.url}/\n\nhello you"


def test_charsets(server, page):
    server.page("/header", "<p>東京".encode("shift_jis"), kind="text/html; charset=Shift_JIS")
    server.page("/meta", '<meta charset="gbk"><p>北京'.encode("gbk"), kind="text/html")
    server.page("/wrong", "<p>café".encode(), kind="text/html; charset=nonsense")
    assert "東京" in content(page, f"{server.url}/header")
    assert "北京" in content(page, f"{server.url}/meta")
    assert "café" in content(page, f"{server.url}/wrong")


def test_control_characters_are_gone(server, page):
    server.page("/", "a\x1b[31mb\x07c\u200b\ufeffd\r\ne", kind="text/plain; charset=utf-8")
    assert content(page, server.url + "/").endswith("\n\na[31mbcd\ne")


def test_a_cut_page_says_so(server, page, monkeypatch):
    monkeypatch.setattr(module, "_MAX_BYTES", 1000)
    server.page("/", gzip.compress(b"<p>" + b"word " * 1000), Content_Encoding="gzip")
    assert content(page, server.url + "/").endswith("(The rest is too long and was not read.)")


@pytest.mark.parametrize(
    "status, part",
    [
        ("404 Not Found", "answered 404 Not Found: there is no such page."),
        ("403 Forbidden", "does not let programs read it"),
        ("429 Too Many Requests", "asks to wait"),
        ("503 Service Unavailable", "the server has a problem"),
        ("418 I'm a Teapot", "answered 418"),
        ("304 Not Modified", "answered 304"),
    ],
)
def test_refusals_of_the_server(server, page, status, part):
    server.page("/", "sorry", status=status)
    assert part in failure(page, server.url + "/")


@pytest.mark.parametrize(
    "kind, body, part",
    [
        ("text/html", "<script>render()</script><div id=root></div>", "made by scripts"),
        ("text/plain", "a\0b", "is not text"),
        ("image/png", "x", "sends image/png"),
        ("text/html", "<a " + " ".join(f"x{n}=1" for n in range(20_000)) + ">", "attributes"),
    ],
)
def test_what_cannot_be_read(server, page, kind, body, part):
    server.page("/", body, kind=kind)
    assert part in failure(page, server.url + "/")


def test_addresses_as_models_write_them(internet, server, monkeypatch):
    monkeypatch.setattr("qwen_agent.tools.http._CONNECT_SECONDS", 0.3)
    internet.names["example.test"] = [[PUBLIC]]
    server.page("/a", "hello")
    page = web_page()
    for written in ("http://example.test/a", " <http://example.test/a> ", '"http://example.test/a"'):
        assert content(page, written).endswith("hello")
    failure(page, "example.test/a")  # https, which this server does not speak
    assert internet.connected[-1] == (PUBLIC, 443)
    assert "longer than 2000" in failure(page, "http://example.test/" + "a" * 2000)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/", "http://localhost:8080/", "http://169.254.169.254/latest", "file:///x"]
)
def test_only_the_public_web(server, url):
    assert "hello" not in failure(web_page(), url)


def test_private_addresses_are_not_read_unless_allowed(server):
    server.page("/", "hello")
    failure(web_page(), server.url + "/")
    assert server.asked == []
    assert "hello" in content(web_page(allow_private=True), server.url + "/")


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"pip install 'qwen-react-agent\[web\]'"):
        web_page()


def test_what_the_tool_declares(page):
    assert page.name == "web_page" and page.untrusted and not page.side_effects
    assert page.parameters["required"] == ["url"]
    assert page.parameters["properties"]["page"]["default"] == 1


@pytest.mark.parametrize(
    "text, parts",
    [
        ("short", ["short"]),
        ("", [""]),
        ("aaaa aaaa\n\nbbbb bbbb", ["aaaa aaaa", "bbbb bbbb"]),
        ("aaaa aaaa\nbbbb bbbb", ["aaaa aaaa", "bbbb bbbb"]),
        ("aaaa aaaa bbbb bbbb", ["aaaa aaaa", "bbbb bbbb"]),
        ("aaaa aaaa\n\n# b\n\nbbbb", ["aaaa aaaa", "# b\n\nbbbb"]),
        ("# a b c d e f g h", ["# a b c d e", "f g h"]),
        ("a" * 25, ["a" * 12, "a" * 12, "a"]),
    ],
)
def test_where_pages_are_cut(text, parts):
    assert split_pages(text, 12) == parts


def test_the_examples_in_the_documentation(server):
    found = [
        (
            "Eiffel Tower - Wikipedia",
            "https://en.wikipedia.org/wiki/Eiffel_Tower",
            "The tower is 330 metres (1,083 ft) tall.",
        ),
        ("Eiffel Tower: how tall is it?", "https://example.org/tower", "About as tall as a building of 81 storeys."),
    ]
    results = [dict(zip(("title", "url", "content"), each, strict=True)) for each in found]
    server.page("/search", json.dumps({"query": "", "results": results}), kind="application/json")
    server.page(
        "/tower",
        "<title>The Eiffel Tower</title><nav>Menu</nav><p>It is <b>330</b> metres tall.<table><tr><th>Floor<th>Height"
        "<tr><td>First<td>57 m<tr><td>Second<td>115 m</table><footer>Imprint</footer>",
    )
    page = Path(__file__).parents[2] / "docs" / "tools" / "web.md"
    ran = doctest.testfile(str(page), module_relative=False, globs={"server": server})
    assert ran.attempted > 8 and not ran.failed
