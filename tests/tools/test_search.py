import doctest
import re
import sqlite3
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_agent.tools import search_documents
from qwen_agent.tools.index import open_index
from qwen_agent.tools.search import search_tool

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


def test_what_the_title_says_does_not_decide_which_sentence_is_shown(tmp_path):
    text = "# Mount Harrow\n\nMount Harrow is a high mountain of gneiss. In 1864 Nora Feld climbed it. It has a hut.\n"
    (tmp_path / "harrow.md").write_text(text)
    search = search_documents(tmp_path, results=1, chars=40)
    assert "Nora Feld" in search(query="who climbed Mount Harrow")
    assert "high mountain" in search(query="Mount Harrow")


def test_a_long_sentence_is_cut_round_the_match(tmp_path):
    text = "word " * 70 + "needle " + "word " * 70
    content = search_documents(write(tmp_path, a=text)).invoke({"query": "needle"}).content
    assert "needle" in content and len(content) < 400


def test_more_distinct_terms_beat_one_term_repeated(tmp_path):
    folder = write(tmp_path, many="apple " * 30, both="One apple and one pear fell from the same old tree.")
    assert "(both.md)" in search_documents(folder).invoke({"query": "apple pear"}).content.splitlines()[0]


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


CODE = """import json


class HTTPReader:
    def parseDate(self, text):
        return json.loads(text)["date"]


def write_all_files(folder):
    for name in folder:
        yield name
"""


@pytest.mark.parametrize(
    "query, line",
    [
        ("parseDate", "def parseDate"),
        ("parse date", "def parseDate"),
        ("parse_date", "def parseDate"),
        ("HTTPReader", "class HTTPReader"),
        ("http reader", "class HTTPReader"),
        ("write all files", "def write_all_files"),
        ("writeAllFiles", "def write_all_files"),
        ("write_all_files", "def write_all_files"),
    ],
)
def test_names_in_code_are_found_by_their_words(tmp_path, query, line):
    (tmp_path / "reader.py").write_text(CODE)
    (tmp_path / "other.py").write_text("def date():\n    return 'all of it'\n")
    content = search_documents(tmp_path, chars=60).invoke({"query": query}).content
    assert content.startswith("[1] reader.py, lines 1-11:") and line in content


def test_code_keeps_its_lines(tmp_path):
    (tmp_path / "reader.py").write_text(CODE)
    content = search_documents(tmp_path, chars=80).invoke({"query": "parseDate"}).content
    assert "def parseDate(self, text):\n        return json" in content


def test_a_row_of_a_table_tells_its_columns(tmp_path):
    rows = "".join(f"Tower {number},{number},City {number}\n" for number in range(200))
    (tmp_path / "towers.csv").write_text(f"name,height (m),city\n{rows}Tokyo Tower,333,Tokyo\n")
    content = search_documents(tmp_path, results=1, chars=60).invoke({"query": "height of Tokyo Tower"}).content
    assert "name: Tokyo Tower; height (m): 333; city: Tokyo" in content


def test_a_page_of_a_pdf_is_named(tmp_path, pdf):
    pytest.importorskip("pypdf")
    (tmp_path / "report.pdf").write_bytes(pdf("The introduction.", "The bridge is 1,280 metres long."))
    content = search_documents(tmp_path).invoke({"query": "how long is the bridge"}).content
    assert content == "[1] Report (report.pdf, page 2): The bridge is 1,280 metres long."


def test_the_main_text_of_html_is_found(tmp_path):
    pytest.importorskip("lxml")
    page = "<title>Ports</title><nav>Rotterdam menu</nav><h1>Ports</h1><h2>Europe</h2><p>Rotterdam is the largest."
    (tmp_path / "ports.html").write_text(page)
    assert search_documents(tmp_path).invoke({"query": "rotterdam"}).content == (
        "[1] Ports > Europe (ports.html): Rotterdam is the largest."
    )


def test_a_damaged_index_is_made_anew_in_the_middle_of_a_conversation(tmp_path):
    place = tmp_path / "index.sqlite"
    index = open_index(write(tmp_path, a="The needle."), place)
    search = search_tool(index)
    assert "needle" in search.invoke({"query": "needle"}).content
    with place.open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    index.connection.execute("PRAGMA cache_size = 0")
    assert "The needle." in search.invoke({"query": "needle"}).content


def test_an_index_in_use_is_said_so(tmp_path, monkeypatch):
    index = open_index(write(tmp_path, a="The needle."), tmp_path / "index.sqlite")
    index.connection.execute("PRAGMA busy_timeout = 10")
    other = sqlite3.connect(tmp_path / "index.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    result = search_tool(index).invoke({"query": "needle"})
    other.close()
    assert not result.ok and "locked" in result.content
    assert "needle" in search_tool(index).invoke({"query": "needle"}).content


def test_a_query_that_is_everywhere_is_fast_enough(tmp_path):
    """A tenth of a second in fact; the limit tells only that no text is marked but what is shown."""
    for number in range(100):
        (tmp_path / f"{number}.txt").write_text("the water of the river runs to the sea. " * 400)
    search = search_documents(tmp_path, index=":memory:")
    started = time.process_time()
    assert search.invoke({"query": "river water runs sea"}).ok
    assert time.process_time() - started < 5


def test_what_the_tool_declares(search):
    assert search.name == "search" and search.untrusted and not search.side_effects
    assert search.description == "Search 8 documents for facts."


def test_the_examples_in_the_documentation(tmp_path, pdf):
    pytest.importorskip("pypdf")
    page = Path(__file__).parents[2] / "docs" / "tools" / "search.md"
    ran = doctest.testfile(str(page), module_relative=False, globs={"folder": tmp_path, "pdf": pdf})
    assert ran.attempted > 10 and not ran.failed
