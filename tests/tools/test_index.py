import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qwen_agent.errors import InputError, QwenAgentError
from qwen_agent.tools import index as module
from qwen_agent.tools import search_documents
from qwen_agent.tools.index import cache_folder, discard, names_in, open_index, words_in
from qwen_agent.tools.search import answer

POSIX = os.name != "nt"


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "docs"
    made.mkdir()
    for name in ("apple", "pear", "plum"):
        (made / f"{name}.md").write_text(f"# {name.title()}\n\nThe {name} grows on a tree.")
    return made


@pytest.fixture
def place(tmp_path):
    return tmp_path / "made" / "index.sqlite"


@pytest.fixture
def read(monkeypatch):
    """The files that are really read."""
    names: list[str] = []

    def note(path, file, real=module.read_file):
        names.append(file)
        return real(path, file)

    monkeypatch.setattr(module, "read_file", note)
    return names


def found(index, query):
    return answer(index, query, 3, 300)


# ---- only what changed ----------------------------------------------------------------------------------------------


def test_a_second_start_reads_nothing(folder, place, read):
    first = open_index(folder, place)
    assert read == ["apple.md", "pear.md", "plum.md"] and first.documents == 3 and first.place == place
    second = open_index(folder, place)
    assert len(read) == 3 and second.documents == 3
    assert found(first, "pear") == found(second, "pear") == "[1] Pear (pear.md): The pear grows on a tree."


def test_a_changed_file_is_read_again_and_a_deleted_one_forgotten(folder, place, read):
    index = open_index(folder, place)
    index.connection.close()
    read.clear()
    (folder / "pear.md").write_text("# Pear\n\nThe quince is no pear.")
    (folder / "plum.md").unlink()
    (folder / "cherry.md").write_text("# Cherry\n\nThe cherry is red.")
    index = open_index(folder, place)
    assert read == ["cherry.md", "pear.md"] and index.documents == 3
    assert "quince" in found(index, "quince") and "cherry" in found(index, "red")
    assert "grows" not in found(index, "pear") and "No results" in found(index, "plum")


def test_the_same_size_at_another_time_is_a_change(folder, place, read):
    open_index(folder, place).connection.close()
    read.clear()
    path = folder / "pear.md"
    before = path.stat()
    path.write_text(path.read_text().replace("tree", "bush"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    assert "bush" in found(open_index(folder, place), "pear") and read == ["pear.md"]


def test_many_changes_leave_what_a_new_index_would_have(folder, place):
    for turn in range(5):
        for number in range(turn, 20, 3):
            (folder / f"{number}.txt").write_text(f"Note {number} of turn {turn}. " * (turn + 1))
        (folder / f"{turn}.txt").unlink(missing_ok=True)
        kept = open_index(folder, place)
        fresh = open_index(folder, ":memory:")
        for query in ("note 7", "turn 3", "tree", "note of turn 1 or 2"):
            # Equally good passages may come in another order, since files were added in another.
            assert sorted(found(kept, query).split("(")[1:]) == sorted(found(fresh, query).split("(")[1:]) or turn
        rows = "SELECT file, body FROM passages ORDER BY file, body"
        assert kept.connection.execute(rows).fetchall() == fresh.connection.execute(rows).fetchall()
        kept.connection.execute("INSERT INTO passages(passages) VALUES('integrity-check')")
        kept.connection.close()


def test_a_file_that_becomes_unreadable_is_forgotten_and_counted(folder, place, read):
    open_index(folder, place).connection.close()
    (folder / "pear.md").write_bytes(b"\0\0")
    index = open_index(folder, place)
    assert index.skipped == {"binary": 1} and "No results" in found(index, "pear")
    read.clear()
    assert open_index(folder, place).skipped == {"binary": 1} and read == []


def test_what_may_change_by_itself_is_tried_again(folder, place, read, monkeypatch):
    (folder / "page.html").write_text("<p>hello")
    for each in ("lxml", "lxml.etree", "lxml.html"):
        monkeypatch.setitem(sys.modules, each, None)
    [(reason, count)] = open_index(folder, place).skipped.items()
    assert "qwen-react-agent[web]" in reason and count == 1
    monkeypatch.undo()
    pytest.importorskip("lxml")
    assert open_index(folder, place).documents == 4


def test_progress_is_told(folder, place):
    told: list[tuple[int, int]] = []
    open_index(folder, place, lambda done, total: told.append((done, total))).connection.close()
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    told.clear()
    open_index(folder, place, lambda done, total: told.append((done, total)))
    assert told == []


def test_a_stopped_start_keeps_what_it_read(folder, place, read, monkeypatch):
    monkeypatch.setattr(module, "_BATCH_SECONDS", 0.0)

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_index(folder, place, stop)
    read.clear()
    assert open_index(folder, place).documents == 3 and read == ["plum.md"]


# ---- on disk --------------------------------------------------------------------------------------------------------


def test_the_default_place_is_in_the_cache(folder, cache):
    index = open_index(folder)
    assert index.place is not None and index.place.parent == cache / "search"
    other = folder.parent / "other"
    other.mkdir()
    (other / "a.txt").write_text("hello")
    assert open_index(other).place != index.place
    if POSIX:
        assert index.place.stat().st_mode & 0o077 == 0
        (folder.parent / "link").symlink_to(folder)
        assert open_index(folder.parent / "link").place == index.place


def test_cache_folders_by_system(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    absolute = str(tmp_path / "elsewhere")
    assert cache_folder({}, "linux") == tmp_path / ".cache" / "qwen-react-agent"
    assert cache_folder({"XDG_CACHE_HOME": absolute}, "linux") == Path(absolute, "qwen-react-agent")
    assert cache_folder({"XDG_CACHE_HOME": "relative"}, "linux") == tmp_path / ".cache" / "qwen-react-agent"
    assert cache_folder({}, "darwin") == tmp_path / "Library" / "Caches" / "qwen-react-agent"
    assert cache_folder({"LOCALAPPDATA": absolute}, "win32") == Path(absolute, "qwen-react-agent")
    assert cache_folder({}, "win32") == tmp_path / "AppData" / "Local" / "qwen-react-agent"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"not a database" * 1000,
        lambda data: data[:5000],
        lambda data: data[: len(data) // 2],
        lambda data: data[:100] + b"\xff" * (len(data) - 100),
        lambda data: data[:4096] + b"\0" * (len(data) - 4096),
        lambda data: data[:4096] + b"\xff" * (len(data) - 4096),
    ],
    ids=["empty", "text", "start", "half", "header", "zeros", "ones"],
)
def test_a_damaged_index_is_made_anew(folder, damage):
    place = open_index(folder).place
    place.write_bytes(damage(place.read_bytes()))
    index = open_index(folder)
    assert index.place == place and "pear" in found(index, "pear")
    assert "pear" in found(open_index(folder), "pear")


def test_an_index_of_another_version_is_made_anew(folder, place):
    open_index(folder, place).connection.close()
    with sqlite3.connect(place) as other:
        other.execute("PRAGMA user_version = 99")
        other.execute("DROP TABLE files")
        other.execute("CREATE TABLE files(other)")
    other.close()
    assert "pear" in found(open_index(folder, place), "pear")


def test_a_file_that_is_no_index_is_never_overwritten(folder, tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("dear diary")
    database = tmp_path / "other.db"
    with sqlite3.connect(database) as other:
        other.execute("CREATE TABLE files(mine)")
    other.close()
    for path in (notes, database):
        before = path.read_bytes()
        with pytest.raises(InputError, match="is not a search index"):
            open_index(folder, path)
        assert path.read_bytes() == before
    with pytest.raises(InputError, match="is a folder"):
        open_index(folder, tmp_path)


def test_an_index_that_cannot_be_kept_is_made_in_memory_with_a_warning(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match=r"cannot be kept in .*file.*index"):
        index = open_index(folder, tmp_path / "file" / "index.sqlite")
    assert index.place is None and "pear" in found(index, "pear")

    def homeless(*_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(module, "cache_folder", homeless)
    with pytest.warns(UserWarning, match="the cache directory.*home directory"):
        assert open_index(folder).place is None


def test_a_disk_that_is_full_is_such_a_case(folder, place, monkeypatch):
    class Full(module._Connection):
        def executemany(self, *statement):
            if self.execute("PRAGMA database_list").fetchone()[2]:
                raise sqlite3.OperationalError("database or disk is full")
            return super().executemany(*statement)

    monkeypatch.setattr(module, "_Connection", Full)
    with pytest.warns(UserWarning, match="disk is full"):
        assert "pear" in found(open_index(folder, place), "pear")


def test_a_read_only_index_that_is_up_to_date_is_used(folder, place):
    open_index(folder, place).connection.close()
    place.chmod(0o400)
    place.parent.chmod(0o500)
    index = open_index(folder, place)
    assert index.place == place and "pear" in found(index, "pear")
    place.parent.chmod(0o700)


def test_memory_may_be_asked_for(folder, cache):
    before = set(cache.rglob("*"))
    assert open_index(folder, ":memory:").place is None
    assert set(cache.rglob("*")) == before


def test_a_removed_index_is_gone(folder, place):
    discard(open_index(folder, place))
    assert list(place.parent.iterdir()) == []


# ---- two at the same time -------------------------------------------------------------------------------------------

START = """
import sys
from qwen_agent.tools.index import open_index
from qwen_agent.tools.search import answer
index = open_index(sys.argv[1], sys.argv[2])
print(index.documents, index.place is not None, answer(index, "unusual 7", 1, 100))
"""


def test_processes_may_start_at_the_same_time(tmp_path, place):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(150):
        (folder / f"{number}.txt").write_text(f"The unusual note {number}. " + "Words that are in every note. " * 50)
    command = [sys.executable, "-W", "error", "-c", START, str(folder), str(place)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = [process.communicate(timeout=60)[0] for process in started]
    assert [line.startswith("150 True The unusual note 7.") for line in said] == [True] * 4
    with sqlite3.connect(place) as index:
        assert index.execute("SELECT count(*) FROM files").fetchone() == (150,)
        assert index.execute("SELECT count(DISTINCT file) FROM passages").fetchone() == (150,)
        covered = "SELECT sum(last - first + 1), (SELECT count(*) FROM passages) FROM files"
        assert len(set(index.execute(covered).fetchone())) == 1
        index.execute("INSERT INTO passages(passages) VALUES('integrity-check')")
    index.close()


def test_one_searches_while_another_writes(folder, place):
    reader = open_index(folder, place)
    stopped = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            for turn in range(30):
                (folder / "pear.md").write_text(f"# Pear\n\nThe pear of turn {turn} grows.")
                open_index(folder, place).connection.close()
        except BaseException as error:
            failures.append(error)
        stopped.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not stopped.is_set():
        assert "pear" in found(reader, "pear")
    writer.join()
    assert not failures and "turn 29" in found(reader, "pear")


def test_a_lock_that_is_never_given_back_means_memory(folder, place, monkeypatch):
    monkeypatch.setattr(module, "_BUSY_SECONDS", 0.1)
    open_index(folder, place).connection.close()
    (folder / "new.txt").write_text("quince")
    other = sqlite3.connect(place, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.warns(UserWarning, match="locked"):
        assert "quince" in found(open_index(folder, place), "quince")
    other.close()


# ---- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, words",
    [
        ("parseDate", "parse Date"),
        ("parse_date", "parse date"),
        ("HTTPServer2", "HTTP Server 2"),
        ("_private_name", "private name"),
        ("MAX_BYTES", "MAX BYTES"),
        ("überGröße", "über Größe"),
        ("word", ""),
        ("Word", ""),
        ("HTTP", ""),
        ("_word", ""),
        ("x2", ""),
    ],
)
def test_the_words_of_a_name(name, words):
    assert " ".join(words_in(name)) == words


def test_names_in_text():
    assert names_in("call parseDate(x) of HTTPServer, parseDate again, not snake_case") == [
        *("parse", "Date", "HTTP", "Server")
    ]


def test_marks_and_broken_characters_do_not_reach_the_index(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b \\u0002needle\\u0003"}')
    assert found(open_index(tmp_path, ":memory:"), "needle") == "[1] A (a.jsonl, row 1): text: a?b needle"


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_unusable_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"does not exist.*\.md"):
        search_documents(tmp_path / "missing")
    (tmp_path / "a.txt").write_bytes(b"\0")
    with pytest.raises(InputError, match="is not a folder"):
        search_documents(tmp_path / "a.txt")
    with pytest.raises(InputError, match=r"no readable text.*\.rst.*1 binary"):
        search_documents(tmp_path)


def test_a_python_without_full_text_search_is_told_so(folder, monkeypatch):
    class NoFts(module._Connection):
        def execute(self, statement, *parameters):
            if "fts5" in statement:
                raise sqlite3.OperationalError("no such module: fts5")
            return super().execute(statement, *parameters)

    monkeypatch.setattr(module, "_Connection", NoFts)
    for place in (None, ":memory:"):
        with pytest.raises(QwenAgentError, match="FTS5"):
            search_documents(folder, index=place)
