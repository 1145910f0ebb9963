import os
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_agent.tools import documents
from qwen_agent.tools.documents import Skipped, pdf_pages, read_file, walk
from qwen_agent.tools.passages import split_code, split_markdown


def read(folder: Path, name: str, text: str | bytes):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_file(path, name)[0]


def skipped(folder: Path, name: str, text: str | bytes) -> Skipped:
    with pytest.raises(Skipped) as caught:
        read(folder, name, text)
    return caught.value


def listed(folder: Path) -> tuple[list[str], dict[str, int]]:
    reasons: Counter[str] = Counter()
    return [file for file, _ in walk(folder.resolve(), reasons)], dict(reasons)


# ---- which files ----------------------------------------------------------------------------------------------------


def test_documents_of_known_kinds_in_order(tmp_path):
    for name in (
        "b.md",
        "a.TXT",
        "c.py",
        "d.pdf",
        "e.exe",
        ".hidden.md",
        "sub/f.html",
        ".git/g.txt",
        "node_modules/h.js",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert listed(tmp_path) == (["a.TXT", "b.md", "c.py", "d.pdf", "sub/f.html"], {})


def test_a_virtual_environment_is_passed_over(tmp_path):
    (tmp_path / "venv" / "lib").mkdir(parents=True)
    (tmp_path / "venv" / "pyvenv.cfg").write_text("")
    (tmp_path / "venv" / "lib" / "a.py").write_text("x")
    assert listed(tmp_path) == ([], {})


@pytest.mark.skipif(not hasattr(os, "symlink") or os.name == "nt", reason="needs links")
def test_links_are_not_followed(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("secret")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "a.txt").write_text("a")
    (inside / "file.txt").symlink_to(tmp_path / "outside" / "secret.txt")
    (inside / "folder").symlink_to(tmp_path / "outside")
    (inside / "loop").symlink_to(inside)
    (inside / "dead.txt").symlink_to(inside / "nowhere")
    assert listed(inside) == (["a.txt"], {"a link": 4})
    with pytest.raises(Skipped, match="unreadable"):  # one that was put there after the listing
        read_file(inside / "file.txt", "file.txt")


def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("a")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert listed(tmp_path / "link") == (["a.txt"], {})


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_what_may_not_be_read_is_counted(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.txt").chmod(0)
    assert listed(tmp_path) == (["a.txt"], {"unreadable folder": 1})
    with pytest.raises(Skipped, match="unreadable"):
        read_file(tmp_path / "a.txt", "a.txt")
    (tmp_path / "closed").chmod(0o700)


@pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="names are bytes only on Linux")
def test_a_name_that_is_not_text(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "w") as file:  # noqa: PTH123
        file.write("x")
    assert listed(tmp_path)[0] == ["caf\ufffd.txt"]


def test_what_is_skipped_and_why(tmp_path):
    assert skipped(tmp_path, "a.txt", b"\x89PNG\0\0").reason == "binary"
    assert skipped(tmp_path, "a.txt", b" \n").reason == "empty"
    assert skipped(tmp_path, "a.py", b"").reason == "empty"
    assert skipped(tmp_path, "a.csv", b"name,height\n").reason == "empty"
    assert skipped(tmp_path, "a.pdf", b"not a PDF").reason == "damaged"
    with (tmp_path / "huge.txt").open("wb") as file:
        file.truncate(10_000_001)
    with pytest.raises(Skipped, match="over 10 MB"):
        read_file(tmp_path / "huge.txt", "huge.txt")
    with pytest.raises(Skipped, match="unreadable"):
        read_file(tmp_path / "gone.txt", "gone.txt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(Skipped, match="not a regular file"):
        read_file(tmp_path / "pipe.txt", "pipe.txt")


# ---- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_encodings(tmp_path, encoding):
    assert read(tmp_path, "a.txt", "café".encode(encoding))[0].body == "café"


def test_passages_follow_headings_and_paragraphs():
    paragraph = "One two three four five six seven eight nine ten. " * 5
    text = (
        f"# Book\n\nIntro **bold** and a [link](http://x).\n\n## Part\n\n{paragraph}\n\n{paragraph}\n\n{paragraph}\n\n"
        f"### Deep\n\n```\n# not a heading\n```\n\n## Next ##\n\n{paragraph * 8}"
    )
    passages = list(split_markdown(text, "book.md"))
    assert {passage.title for passage in passages} == {"Book"}
    assert passages[0].body == "Intro bold and a link."
    assert list(dict.fromkeys(p.heading for p in passages)) == ["", "Part", "Part > Deep", "Next"]
    assert [len(p.body.split()) for p in passages if p.heading == "Part"] == [100, 50]
    assert all(80 <= len(p.body.split()) <= 150 for p in passages if p.heading == "Next")


def test_underlined_headings():
    passages = split_markdown("Guide\n=====\n\nHello.\n\nUse\n---\n\nDo it.\n", "guide.rst")
    assert [(p.title, p.heading, p.body) for p in passages] == [("Guide", "", "Hello."), ("Guide", "Use", "Do it.")]


def test_a_file_without_headings_is_titled_by_its_name():
    assert next(split_markdown("Hello there.", "sub/my_old-notes.txt")).title == "My Old Notes"


def test_text_without_spaces_is_cut():
    assert all(len(p.body) <= 20_000 for p in split_markdown("x" * 1_000_000, "a.txt"))
    assert all(len(p.body) <= 20_000 for p in split_code("x" * 1_000_000, "a.js"))


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=300), st.sampled_from([split_markdown, split_code]))
def test_no_word_is_lost_in_plain_text(text, split):
    words = "".join(character for character in text if character.isalnum())
    kept = "".join(f"{p.title}{p.heading}{p.body}" for p in split(f"start {text}", "a"))
    assert all(kept.count(character) >= words.count(character) for character in set(words))


# ---- code -----------------------------------------------------------------------------------------------------------


def test_code_is_cut_at_blank_lines():
    function = "\n".join(["def name():", *(f"    value_{n} = one + two + three" for n in range(9))])
    passages = list(split_code("\n\n\n".join([function] * 6), "pkg/mod.py"))
    assert [p.place for p in passages] == ["lines 1-22", "lines 25-46", "lines 49-70"]
    assert all(p.body.startswith("def name():") and p.body.endswith("value_8 = one + two + three") for p in passages)
    assert {(p.title, p.file) for p in passages} == {("mod.py", "pkg/mod.py")}


def test_a_long_block_is_cut_between_lines():
    passages = list(split_code("\n".join(f"row {n} of many rows" for n in range(200)), "a.sql"))
    assert [p.place for p in passages][:2] == ["lines 1-30", "lines 31-60"]
    assert sum(p.body.count("\n") + 1 for p in passages) == 200


# ---- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.csv", "name,height\nEiffel Tower,330\n"),
        ("a.csv", "name;height\nEiffel Tower;330\n"),
        ("a.csv", "name|height\nEiffel Tower|330\n"),
        ("a.csv", "name\theight\nEiffel Tower\t330\n"),
        ("a.tsv", "name\theight\nEiffel Tower\t330\n"),
        ("a.csv", '"name","height"\r\n\r\n"Eiffel\n Tower","330"\r\n'),
        ("a.csv", "\ufeffname,height\nEiffel Tower,330,\n"),
    ],
)
def test_tables_in_all_dialects(tmp_path, name, text):
    assert read(tmp_path, name, text)[0].body == "name: Eiffel Tower; height: 330"


def test_every_group_of_rows_keeps_the_header(tmp_path):
    rows = "\n".join(f"tower {n},{n}" for n in range(300))
    passages = read(tmp_path, "towers.csv", f"name,height\n{rows}")
    assert len(passages) > 5 and passages[0].place == "rows 2-17" and passages[0].title == "Towers"
    assert all(line.startswith("name: tower") for p in passages for line in p.body.split("\n"))


def test_a_table_without_header_or_with_ragged_rows(tmp_path):
    assert read(tmp_path, "a.csv", "Paris,330\nTokyo,333\n")[0].body == "Paris; 330\nTokyo; 333"
    assert read(tmp_path, "a.csv", "a,b\n1,2,3\n4\n")[0].body == "a: 1; b: 2; 3\na: 4"


def test_a_table_that_is_none(tmp_path):
    assert "x" * 100 in read(tmp_path, "a.csv", 'a,"' + "x" * 200_000)[0].body


def test_json_lines(tmp_path):
    text = '{"who": "Ada", "tags": ["a", "b"]}\n\n[1, 2]\nnot JSON\n{"deep": ' + "[" * 100_000 + "\n"
    assert read(tmp_path, "a.jsonl", text)[0].body.startswith('who: Ada; tags: ["a", "b"]\n[1, 2]\nnot JSON')


# ---- HTML and PDF ---------------------------------------------------------------------------------------------------


def test_html_has_its_headings(tmp_path):
    pytest.importorskip("lxml")
    page = "<meta charset=gb2312><title>城市</title><h1>法国</h1><script>x</script><p>埃菲尔铁塔高三百三十米。"
    passage = read(tmp_path, "a.html", page.encode("gb18030"))[0]
    assert (passage.title, passage.heading, passage.body) == ("城市", "法国", "埃菲尔铁塔高三百三十米。")


def test_pdf_pages(tmp_path, pdf):
    pytest.importorskip("pypdf")
    passages = read(tmp_path, "my report.pdf", pdf("A bridge.", "", "It is an exam-\nple of\nsteel."))
    assert [(p.title, p.body, p.place) for p in passages] == [
        ("My Report", "A bridge.", "page 1"),
        ("My Report", "It is an example of steel.", "page 3"),
    ]


@pytest.mark.parametrize("title", ["Microsoft Word - x.doc", "report final.pdf", "untitled 1", "x"])
def test_a_title_that_is_none_is_not_used(tmp_path, pdf, title):
    pytest.importorskip("pypdf")
    assert read(tmp_path, "a.pdf", pdf("text", title=title))[0].title == "A"
    assert read(tmp_path, "a.pdf", pdf("text", title="The Bridges of Paris"))[0].title == "The Bridges of Paris"


def test_a_pdf_without_text_says_so(tmp_path, pdf):
    pytest.importorskip("pypdf")
    assert skipped(tmp_path, "a.pdf", pdf("", "")).reason == "without text (scanned pages need OCR)"


def test_encrypted_pdfs(tmp_path, pdf):
    pypdf = pytest.importorskip("pypdf")
    for password in ("secret", ""):
        (tmp_path / "plain.pdf").write_bytes(pdf("hello"))
        writer = pypdf.PdfWriter(clone_from=tmp_path / "plain.pdf")
        writer.encrypt(password, "owner", algorithm="RC4-128")
        writer.write(tmp_path / "locked.pdf")
        if password:
            with pytest.raises(Skipped, match="encrypted"):
                read_file(tmp_path / "locked.pdf", "locked.pdf")
        else:
            assert read_file(tmp_path / "locked.pdf", "locked.pdf")[0][0].body == "hello"


def test_damaged_pdfs_are_skipped_or_read(pdf):
    pytest.importorskip("pypdf")
    whole = pdf("hello there", "second page")
    chance = random.Random(1)
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(8):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            assert pdf_pages(bytes(data[: chance.randrange(1, len(data))]))
        except Skipped as reason:
            assert reason.reason in ("damaged", "encrypted", "without text (scanned pages need OCR)")


def test_reading_a_pdf_can_be_stopped(pdf):
    pytest.importorskip("pypdf")
    with pytest.raises(Skipped, match="stopped") as caught:
        pdf_pages(pdf("a", "b"), stopped=lambda: True)
    assert not caught.value.lasting


@pytest.mark.parametrize(
    "module, name, command",
    [
        ("pypdf", "a.pdf", "pip install 'qwen-react-agent[pdf]'"),
        ("lxml", "a.html", "pip install 'qwen-react-agent[web]'"),
    ],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, module, name, command):
    for each in (module, f"{module}.etree", f"{module}.html"):
        monkeypatch.setitem(documents.logging.sys.modules, each, None)
    reason = skipped(tmp_path, name, "<p>hello")
    assert command in reason.reason and not reason.lasting
