import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_agent.errors import ToolError

pytest.importorskip("lxml")
from qwen_agent.tools.html_text import decode, read_html

ARTICLE = """<!doctype html>
<html lang="en"><head><title> Eiffel Tower –
  Encyclopedia </title><style>p {color: red}</style>
<script>if (a < b && c > d) document.write("<p>no</p>")</script></head>
<body class="page has-sidebar modal-open">
<a class="skip-link" href="#content">Skip to content</a>
<header><a href="/">Encyclopedia</a>
<nav><ul><li><a href="/a">Articles</a><li><a href="/b">Random</a></ul></nav></header>
<div id="cookie-banner">We value your privacy. <button>Accept</button></div>
<div class="layout"><div class="sidebar"><h3>On this page</h3><ul><li>History</ul></div>
<main id="content">
<h1>Eiffel Tower<span class="mw-editsection">[edit]</span></h1>
<p>The <b>Eiffel Tower</b> is <i>330</i>&nbsp;metres tall<sup><a href="#n1">[1]</a></sup> and stands in
   <a href="/wiki/Paris">Paris</a>, <a href='https://fr.test/france#x'>France</a>.<br>It is made of iron.
<h2>Dimensions</h2>
<table class="infobox"><caption>Data</caption><tr><th>Part<th>Height<tr><td>First floor</td><td>57&nbsp;m</td></tr>
<tr><td>Top</td><td><p>300 m</p></td></tr></table>
<ul><li>Steps: 1,665</li><li><p>Lifts:</p><ul><li>5 up</li></ul></li></ul>
<pre><code>height = 330
  # metres</code></pre>
<dl><dt>Architect<dd>Stephen Sauvestre</dl>
<p hidden>Hidden words.</p><div aria-hidden="true">Icons</div><noscript>Turn on scripts.</noscript>
<aside>Read more: Tokyo Tower</aside>
<img src="data:image/png;base64,AAAA" alt="A picture"><figure><figcaption>The tower in 1889.</figcaption></figure>
</main></div>
<div class="share social-buttons">Share this</div>
<footer>© 2026 Encyclopedia <a href="/imprint">Imprint</a></footer>
<script>trailing()</script></body></html>"""

TEXT = """# Eiffel Tower

The Eiffel Tower is 330 metres tall[1] and stands in Paris, France.
It is made of iron.

## Dimensions

Data
Part | Height
First floor | 57 m
Top | 300 m

- Steps: 1,665
- Lifts:

- 5 up

```
height = 330
  # metres
```

Architect
Stephen Sauvestre

The tower in 1889."""


def test_an_article():
    page = read_html(ARTICLE)
    assert page.title == "Eiffel Tower – Encyclopedia"
    assert page.text == TEXT
    assert page.links == ()


def test_links_are_numbered_when_there_is_a_base():
    page = read_html(ARTICLE, "https://en.test/wiki/Eiffel_Tower")
    assert "stands in Paris [1], France [2]." in page.text and "tall[1] and" in page.text
    assert page.links == ("https://en.test/wiki/Paris", "https://fr.test/france")


@pytest.mark.parametrize("href", ["#top", "", "javascript:x()", "mailto:a@b.c", "http://[", "https://a.test/#x"])
def test_what_is_no_other_page_has_no_number(href):
    page = read_html(f'<p>one <a href="{href}">two</a> three', "https://a.test/")
    assert page.text == "one two three" and page.links == ()


def test_a_link_without_text_has_no_number():
    page = read_html('<p>one <a href="/a"><img src=x></a><a href="/b"> </a> two', "https://a.test/")
    assert page.text == "one two" and page.links == ()


def test_one_number_for_one_page():
    page = read_html('<a href="/a">x</a> <a href="/b">y</a> <a href="/a#z">z</a>', "https://a.test/")
    assert page.text == "x [1] y [2] z [1]" and len(page.links) == 2


@pytest.mark.parametrize(
    "html, text",
    [
        ("", ""),
        ("   ", ""),
        ("<!-- only a comment -->", ""),
        ("just text", "just text"),
        ("a < b & c &amp; d &#8364;", "a < b & c & d €"),
        ("<p>one<p>two", "one\n\ntwo"),
        ("<div>one<div>two</div>three</div>", "one\n\ntwo\n\nthree"),
        ("<li>loose", "- loose"),
        ("<h2>A</h2>text", "## A\n\ntext"),
        ("<b>bo</b>ld", "bold"),
        ("one<br>two<br/>three", "one\ntwo\nthree"),
        ("<table><tr><td>a<td>b</table>", "a | b"),
        ("<table><tr><td>a<td><td></table>", "a"),
        ("<pre>\n a\n\n b </pre>", "```\n a\n\n b \n```"),
        ("<p>a\n   b\t c</p>", "a b c"),
        ("<title>T</title>", ""),
        ("<frameset><frame src=x></frameset>", ""),
        ("<p>before<script>x</script>after", "beforeafter"),
        ("<svg><title>no</title><text>no</text></svg>yes", "yes"),
        ("<textarea>no</textarea><select><option>no</select>yes", "yes"),
        ("a\0b", "ab"),
    ],
)
def test_pieces(html, text):
    assert read_html(html).text.replace("\ufffd", "") == text


def test_nothing_large_is_left_out_for_its_name():
    words = "All of the page stands in here. " * 20
    assert read_html(f'<body class="sidebar"><div id="menu">{words}</div><p>end').text.endswith("here.\n\nend")
    assert "All of" in read_html(f'<div class="modal popup"><article>{words}</article></div>').text
    assert read_html(f'<div class="menu">Home</div><p>{words}').text.startswith("All of")


def test_the_main_element_only_if_it_holds_the_text():
    words = "The text of the page. " * 20
    assert read_html(f"<p>Teaser<main>{words}</main><p>More").text == words.strip()
    assert "The text" in read_html(f"<main>Loading</main><div>{words}</div>").text
    two = f"<article>{words}</article><article>Another. {words}{words}</article>"
    assert read_html(two).text.startswith("Another.")


def test_the_title_is_else_the_first_heading():
    assert read_html("<p>intro<h2>Heading</h2>").title == "Heading"


HOSTILE = {
    "deep": "<div>" * 100_000 + "x",
    "deep with names": "<nav class=nav>" * 50_000 + "x",
    "formatting": "<p><b><i>" * 30_000 + "x",
    "fonts": "<font size=1><font size=2>" * 1000 + "<p>" * 20_000,
    "links": "<a href=x>" * 50_000,
    "list": "<ul>" + "<li>x" * 50_000,
    "tables": "<table><tr><td>" * 20_000,
    "signs": "<" * 500_000,
    "half tags": "<a<" * 200_000,
    "comments": "<!--" * 200_000,
    "cdata": "<![CDATA[" * 100_000,
    "declarations": "<!DOCTYPE " * 100_000,
    "instructions": "<?" * 200_000,
    "scripts": "<script>" * 100_000,
    "script ends": "<script>" + "</scrip" * 100_000,
    "many scripts": "<script>x</script>y" * 30_000,
    "entities": "&amp" * 200_000 + "&" * 200_000,
    "quotes": '<a"' * 200_000 + "<a='" * 200_000,
    "a long word": "x" * 1_000_000,
    "breaks": "<br>" * 100_000,
}


@pytest.mark.parametrize("html", HOSTILE.values(), ids=HOSTILE)
def test_no_markup_takes_long(html):
    """A second or two at most when bounded, minutes when not: the limit only tells the two apart."""
    started = time.process_time()
    with contextlib.suppress(ToolError):
        read_html(html, "https://a.test/")
    assert time.process_time() - started < 20


@pytest.mark.parametrize(
    "tag",
    [
        "<a " + " ".join(f"x{n}=1" for n in range(50_000)) + ">",
        "<a" + "".join(f"/x{n}" for n in range(50_000)) + ">",
        "<a " + "".join(f"x{n}=''" for n in range(50_000)) + ">",
        "<a " + "".join(f'x{n}=">"' for n in range(50_000)) + ">",
        "<a " + " ".join(f'x{n}=b"c' for n in range(50_000)) + ">",
        '<a x=b"c ' + " ".join(f"x{n}" for n in range(50_000)) + '">',
    ],
    ids=["plain", "slashes", "joined", "signs", "stray quotes", "one quote"],
)
def test_a_tag_with_thousands_of_attributes_is_refused(tag):
    with pytest.raises(ToolError, match="attributes"):
        read_html(f"<p>{tag}")


def test_long_tags_and_scripts_that_pages_have_are_read():
    picture = '<img alt="a > b" src="data:image/png;base64,' + "A/ b" * 100_000 + '">'
    script = "<script>for (i=0;i<n;i++) {" + "some words of code; " * 500 + "}</script>"
    assert read_html(f"<p>before{picture}{script} after").text == "before after"


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from([*"<>/\"'=&; \nab", "<p>", "</p>", "<table>", "<td>", "<pre>", "</pre>", "<main>"])))
def test_any_markup_gives_text(pieces):
    assert isinstance(read_html("".join(pieces), "https://a.test/").text, str)


@pytest.mark.parametrize(
    "data, charset, text",
    [
        ("café".encode(), "", "café"),
        ("café".encode(), "utf-8", "café"),
        ("café".encode("latin-1"), "ISO-8859-1", "café"),
        ("“café”".encode("cp1252"), "iso-8859-1", "“café”"),
        ("東京".encode("shift_jis"), "Shift_JIS", "東京"),
        ("서울".encode("euc-kr"), '"euc-kr"', "서울"),
        ("\ufeffcafé".encode(), "latin-1", "café"),
        ("\ufeffcafé".encode("utf-16-le"), "", "café"),
        ("\ufeffcafé".encode("utf-16-be"), "", "café"),
        (b"<meta charset='windows-1251'>" + "Москва".encode("cp1251"), "", "<meta charset='windows-1251'>Москва"),
        (b'<meta http-equiv=x content="text/html; charset=gb2312">' + "北京".encode("gbk"), "no-such-charset", None),
        ("café".encode(), "base64", "café"),
        ("café".encode(), "\0", "café"),
        (b"caf\xe9", "utf-8", "caf\ufffd"),
    ],
)
def test_charsets(data, charset, text):
    found = decode(data, charset)
    assert found == text if text is not None else found.endswith("北京")


def test_an_unnamed_charset_is_guessed():
    text = "Это довольно длинный русский текст, по которому кодировку можно угадать. " * 5
    assert decode(text.encode("cp1251")) == text
    assert decode(b"\xff\x81\x8d") != ""
