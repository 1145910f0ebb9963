import os
import re
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_agent.errors import InputError, QwenAgentError
from qwen_agent.tools import search_documents
from qwen_agent.tools.search import read_library

DOCS = Path(__file__).parents[2] / "examples" / "docs"


@pytest.fixture(scope="module")
def search():
    return search_documents(DOCS)


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "query, file, fact",
    [
        ("How tall is the Eiffel Tower?", "eiffel_tower.md", "The Eiffel Tower is 330 metres tall."),
        ("height of Mount Everest", "mount_everest.md", "8,849 metres"),
        ("length of the Great Wall", "great_wall.md", "21,196 kilometres"),
        ("distance from the Earth to the Moon", "moon.md", "384,400 kilometres"),
        ("first person on the moon", "moon.md", "Neil Armstrong"),
        ("Norway population", "norway.md", "5.6 million"),
        ("who created Python", "python_language.md", "Guido van Rossum"),
        ("how many legs does a bee have", "honey_bees.md", "six legs"),
        ("Tokyo Tower opened", "tokyo_tower.md", "December 1958"),
    ],
)
def test_the_best_passage_comes_first(search, query, file, fact):
    first = search.invoke({"query": query}).content.splitlines()[0]
    assert re.match(rf"\[1\] .* \({file}\): ", first) and fact in first


def test_at_most_three_short_results(search):
    lines = search.invoke({"query": "tower capital height metres people"}).content.splitlines()
    assert [line[:3] for line in lines] == ["[1]", "[2]", "[3]"]
    assert all(len(line) < 400 for line in lines)


def test_demo_documents_are_short():
    for path in sorted(DOCS.glob("*.md")):
        assert 60 <= len(path.read_text(encoding="utf-8").split()) <= 150, path.name


def test_no_hit_is_a_normal_result(search):
    result = search.invoke({"query": "xyzzy"})
    assert result.ok and result.content.startswith("No results found for 'xyzzy'")


def test_an_empty_query_is_an_error(search):
    assert not search.invoke({"query": "  "}).ok


def test_words_are_stemmed_and_accents_do_not_matter(tmp_path):
    search = search_documents(write(tmp_path, a="# Café\n\nThe Bürger were running to the city."))
    for query in ("cafe", "burger", "run", "CITIES"):
        assert "[1] Café" in search.invoke({"query": query}).content


def test_stop_words_count_only_when_there_is_nothing_else(tmp_path):
    search = search_documents(write(tmp_path, a="To be or not to be.", b="A question about cats."))
    assert "(b.md)" not in search.invoke({"query": "to be or not to be"}).content
    assert "(a.md)" not in search.invoke({"query": "what is to be a cat"}).content


@pytest.mark.parametrize(
    "text, queries",
    [
        ("埃菲尔铁塔位于法国巴黎，高三百三十米。建于一八八九年。", ["埃菲尔铁塔", "铁塔有多高", "塔", "巴黎"]),
        ("東京タワーは日本の東京にある電波塔です。", ["東京タワー", "タワー", "電波塔はどこ"]),
        ("서울은 대한민국의 수도이다.", ["대한민국 수도", "서울"]),
    ],
)
def test_text_without_spaces_is_found(tmp_path, text, queries):
    search = search_documents(write(tmp_path, right=text, other="天气很好。今日は晴れ。오늘은 맑다."))
    for query in queries:
        result = search.invoke({"query": query}).content
        assert "(right.md)" in result and "(other.md)" not in result


def test_the_sentence_that_matches_is_shown(tmp_path):
    filler = "Nothing of interest is said here at all. " * 4
    long = f"# Notes\n\n{filler}The secret number is 4711. {filler}"
    content = search_documents(write(tmp_path, a=long)).invoke({"query": "secret number"}).content
    assert "The secret number is 4711." in content and "..." in content


def test_a_long_sentence_is_cut_round_the_match(tmp_path):
    text = "word " * 70 + "needle " + "word " * 70
    content = search_documents(write(tmp_path, a=text)).invoke({"query": "needle"}).content
    assert "needle" in content and len(content) < 400


def test_more_distinct_terms_beat_one_term_repeated(tmp_path):
    folder = write(tmp_path, many="apple " * 30, both="One apple and one pear fell from the same old tree.")
    assert "(both.md)" in search_documents(folder).invoke({"query": "apple pear"}).content.splitlines()[0]


def test_passages_follow_headings_and_paragraphs(tmp_path):
    paragraph = "One two three four five six seven eight nine ten. " * 5
    text = (
        f"# Book\n\nIntro **bold** and a [link](http://x).\n\n## Part\n\n{paragraph}\n\n{paragraph}\n\n{paragraph}\n\n"
        f"### Deep\n\n```\n# not a heading\n```\n\n## Next ##\n\n{paragraph * 8}"
    )
    passages = read_library(write(tmp_path, book=text)).passages
    assert {passage.title for passage in passages} == {"Book"}
    assert passages[0].body == "Intro bold and a link."
    assert list(dict.fromkeys(p.heading for p in passages)) == ["", "Part", "Part > Deep", "Next"]
    assert [len(p.body.split()) for p in passages if p.heading == "Part"] == [100, 50]
    assert all(80 <= len(p.body.split()) <= 150 for p in passages if p.heading == "Next")


def test_underlined_headings(tmp_path):
    (tmp_path / "guide.rst").write_text("Guide\n=====\n\nHello.\n\nUse\n---\n\nDo it.\n", encoding="utf-8")
    passages = read_library(tmp_path).passages
    assert [(p.title, p.heading, p.body) for p in passages] == [("Guide", "", "Hello."), ("Guide", "Use", "Do it.")]


def test_a_file_without_headings_is_titled_by_its_name(tmp_path):
    (tmp_path / "my_old-notes.txt").write_text("Hello there.")
    assert read_library(tmp_path).passages[0].title == "My Old Notes"


def test_folders_encodings_and_skipped_files(tmp_path):
    (tmp_path / "sub" / ".git").mkdir(parents=True)
    (tmp_path / "sub" / "bom.txt").write_bytes("\ufeffcafé".encode())
    (tmp_path / "sub" / "latin.TXT").write_bytes("café".encode("latin-1"))
    (tmp_path / "sub" / ".git" / "a.txt").write_text("hidden")
    (tmp_path / ".hidden.md").write_text("hidden")
    (tmp_path / "code.py").write_text("not text")
    (tmp_path / "image.txt").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "blank.md").write_text(" \n")
    with (tmp_path / "huge.txt").open("wb") as file:
        file.truncate(10_000_001)
    library = read_library(tmp_path)
    assert [(p.file, p.body) for p in library.passages] == [("sub/bom.txt", "café"), ("sub/latin.TXT", "café")]
    assert library.documents == 2
    assert library.skipped == {"binary": 1, "empty": 1, "over 10 MB": 1}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(InputError):
        read_library(tmp_path)


def test_unusable_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"does not exist.*\.md"):
        search_documents(tmp_path / "missing")
    (tmp_path / "a.txt").write_bytes(b"\0")
    with pytest.raises(InputError, match="is not a folder"):
        search_documents(tmp_path / "a.txt")
    with pytest.raises(InputError, match=r"no readable text.*\.rst.*1 binary"):
        search_documents(tmp_path)


def test_a_python_without_full_text_search_is_told_so(monkeypatch):
    class NoFts:
        def execute(self, statement):
            raise sqlite3.OperationalError("no such module: fts5")

    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: NoFts())
    with pytest.raises(QwenAgentError, match="FTS5"):
        search_documents(DOCS)


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=40) | st.text(st.sampled_from("\"'()*:^-+ANDORNEAR \u0301_²"), max_size=20))
def test_any_query_is_safe(search, query):
    assert not search.invoke({"query": query}).content.startswith("Error")


def test_a_single_result_is_bare_text(tmp_path: Path) -> None:
    (tmp_path / "tower.md").write_text(
        "# Tower\n\nThe tower is 330 metres tall. " + "It has other properties too. " * 20
    )
    found = search_documents(tmp_path, results=1, chars=60).invoke({"query": "how tall is the tower"}).content
    assert found.startswith("The tower is 330 metres tall.")
    assert len(found) <= 70
