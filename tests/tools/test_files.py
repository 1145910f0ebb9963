"""Files of one folder: what a model reads of them, and that nothing leads out of it."""

from __future__ import annotations

import ctypes
import doctest
import os
import socket
import stat
import sys
import threading
from pathlib import Path

import pytest

from qwen_agent.errors import InputError, ToolError
from qwen_agent.tools import beneath
from qwen_agent.tools.base import Tool
from qwen_agent.tools.beneath import Folder, size_text, split
from qwen_agent.tools.files import MAX_READ, MAX_WRITE, decode_text, file_tools

posix = pytest.mark.skipif(os.name == "nt", reason="needs links, pipes and modes of Unix")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

SECRET = "the secret of the house"


@pytest.fixture(params=["dir_fd", "without dir_fd"])
def way(request, monkeypatch):
    """Both ways to open files: that of Unix, and that of Windows as far as it can be had here."""
    if request.param == "dir_fd" and not beneath._RELATIVE:
        pytest.skip("this system opens no file relative to a folder")
    monkeypatch.setattr(beneath, "_RELATIVE", request.param == "dir_fd")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a few files, beside a secret."""
    (tmp_path / "secret.txt").write_text(SECRET)
    inside = tmp_path / "inside"
    (inside / "deep" / "er").mkdir(parents=True)
    (inside / "a.txt").write_text("one\ntwo\nthree\n")
    (inside / "deep" / "b.csv").write_text("x,y\n1,2\n")
    return inside


@pytest.fixture
def tools(folder: Path, way: None) -> dict[str, Tool]:
    return {tool.name: tool for tool in file_tools(folder, write=True)}


def told(tool: Tool, ok: bool = True, **arguments: object) -> str:
    result = tool.invoke(arguments)
    assert result.ok is ok, result
    assert SECRET not in result.content
    return result.content


# ---- what it is for --------------------------------------------------------------------------------------------------


def test_writing_is_given_only_when_asked_for_and_asks(folder):
    assert [tool.name for tool in file_tools(folder)] == ["list_files", "read_file"]
    *readers, writer = file_tools(folder, write=True)
    assert (writer.name, writer.approval, writer.side_effects, writer.untrusted) == ("write_file", "ask", True, False)
    assert all((tool.approval, tool.side_effects, tool.untrusted) == ("auto", False, True) for tool in readers)


def test_listing(tools, folder):
    (folder / ".env").write_text("KEY=1")
    assert told(tools["list_files"]) == "deep/\na.txt  14 bytes"
    assert told(tools["list_files"], folder="deep") == "er/\nb.csv  8 bytes"
    assert told(tools["list_files"], folder="deep/er/") == "The folder is empty."
    assert told(tools["list_files"], pattern="*.csv") == "deep/b.csv  8 bytes"
    assert told(tools["list_files"], pattern="*.pdf") == "No file matches '*.pdf'."
    assert told(tools["list_files"], ok=False, folder="none") == "There is no 'none'."
    assert "not a folder" in told(tools["list_files"], ok=False, folder="a.txt")


def test_a_long_listing_is_cut_and_says_so(tools, folder):
    for number in range(100):
        (folder / f"{number:03}.txt").touch()
    text = told(tools["list_files"])
    assert text.count("\n") == 60 and text.endswith("... and 42 more: give a pattern")


def test_reading_whole(tools):
    assert told(tools["read_file"], path="a.txt") == "one\ntwo\nthree"
    assert told(tools["read_file"], path="./deep//b.csv") == "x,y\n1,2"
    assert told(tools["read_file"], ok=False, path="c.txt") == "There is no 'c.txt'."
    assert told(tools["read_file"], ok=False, path="deep") == "'deep' is a folder, not a file."


def test_reading_a_part_says_which_and_how_to_go_on(tools, folder):
    (folder / "log").write_text("".join(f"line {number}\n" for number in range(1, 501)))
    text = told(tools["read_file"], path="log")
    assert text.startswith("[lines 1-80 of 500 of 'log'; read on with first_line=81]\nline 1\n")
    assert told(tools["read_file"], path="log", first_line=499).startswith("[lines 499-500 of 500 of 'log']\nline 499")
    assert told(tools["read_file"], path="log", first_line=-2).endswith("]\nline 499\nline 500")
    assert told(tools["read_file"], path="log", first_line=7, lines=1).endswith("first_line=8]\nline 7")
    assert "has 500 lines" in told(tools["read_file"], ok=False, path="log", first_line=501)


def test_long_lines_do_not_fill_the_prompt(tools, folder):
    (folder / "wide").write_text("x" * 100_000 + "\nend\n")
    text = told(tools["read_file"], path="wide")
    assert len(text) < 5200 and "goes on for 95000 characters" in text and "read on with first_line=2" in text


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8-sig", "été"),
        ("utf-16", "été"),
        ("utf-32", "été"),
        ("cp1252", "Le café est à côté de l’hôtel. Où est la gare ?"),
        ("gb18030", "今天天气很好，我们去公园散步。会议纪要：下周一开会讨论预算。"),
        ("cp932", "今日は天気がいいので公園を散歩しました。会議の議事録です。"),
        ("cp1251", "Сегодня хорошая погода, и мы идём гулять в парк."),
    ],
)
def test_older_encodings_are_read(tools, folder, encoding, text):
    (folder / "old.txt").write_bytes(text.encode(encoding))
    read = told(tools["read_file"], path="old.txt")
    assert read.endswith(text) and (encoding == "utf-8-sig" or f"in {encoding}" in read)


def test_binary_is_said_so(tools, folder):
    (folder / "p.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes([0, 0, 0, 9, 0, 0, 0, 7]) + bytes(99))
    (folder / "z.zip").write_bytes(b"PK\x03\x04\x00\x00")
    text = told(tools["read_file"], ok=False, path="p.png")
    assert text == "'p.png' is no text but a PNG picture of 9x7 pixels, 123 bytes."
    assert "no text but application/zip" in told(tools["read_file"], ok=False, path="z.zip")
    with pytest.raises(ToolError, match="binary"):
        decode_text(os.urandom(4000).replace(b"\0", b"\xff"))


def test_writing(tools, folder):
    text = told(tools["write_file"], path="new/er/c.txt", content="één\ntwee\n")
    assert text == "Wrote 'new/er/c.txt': 2 lines, 11 bytes."
    assert (folder / "new/er/c.txt").read_text(encoding="utf-8") == "één\ntwee\n"
    assert sorted(path.name for path in (folder / "new/er").iterdir()) == ["c.txt"]


def test_nothing_is_overwritten_unasked(tools, folder):
    text = told(tools["write_file"], ok=False, path="a.txt", content="x")
    assert text == ("'a.txt' exists already: choose another name, or set overwrite to true to replace it.")
    assert (folder / "a.txt").read_text() == "one\ntwo\nthree\n"
    told(tools["write_file"], path="a.txt", content="x", overwrite=True)
    assert (folder / "a.txt").read_text() == "x"
    assert "a folder" in told(tools["write_file"], ok=False, path="deep", content="x", overwrite=True)


@posix
def test_a_replaced_file_keeps_its_mode(tools, folder):
    (folder / "a.txt").chmod(0o640)
    told(tools["write_file"], path="a.txt", content="x", overwrite=True)
    assert stat.S_IMODE((folder / "a.txt").stat().st_mode) == 0o640


def test_what_is_too_large_is_refused(tools, folder):
    with (folder / "huge").open("wb") as file:
        file.truncate(MAX_READ + 1)  # sparse
    assert told(tools["read_file"], ok=False, path="huge").startswith("'huge' has more than 16 MiB")
    assert "at most 1 MiB" in told(tools["write_file"], ok=False, path="big", content="x" * (MAX_WRITE + 1))
    assert not (folder / "big").exists()


# ---- attacks ---------------------------------------------------------------------------------------------------------

BAD_PATHS = {
    "../secret.txt": "leads out",
    "deep/../../secret.txt": "leads out",
    "deep/..": "leads out",
    "/etc/passwd": "absolute",
    "//etc/passwd": "absolute",
    "a\0.txt": "cannot be a path",
    "x" * 300: "too long",
    "x" * 5000: "cannot be a path",
    "/".join("d" * 50): "too long or too deep",
    "": "name of a file",
    ".": "name of a file",
    ".env": "hidden",
    ".git/hooks/pre-commit": "hidden",
    "deep/.bashrc": "hidden",
}


@posix
@pytest.mark.parametrize(("path", "reason"), BAD_PATHS.items(), ids=[ascii(path)[:25] for path in BAD_PATHS])
def test_a_path_that_is_none_is_refused(tools, folder, path, reason):
    before = sorted(folder.rglob("*"))
    assert reason in told(tools["read_file"], ok=False, path=path)
    assert reason in told(tools["write_file"], ok=False, path=path, content="x", overwrite=True)
    assert sorted(folder.rglob("*")) == before


@posix
def test_links_are_not_followed(tools, folder):
    (folder / "link.txt").symlink_to("../secret.txt")
    (folder / "up").symlink_to("..")
    (folder / "loop").symlink_to("loop")
    (folder / "inner").symlink_to("deep")
    for path in ("link.txt", "loop"):
        assert "is a link, not a file" in told(tools["read_file"], ok=False, path=path)
        assert "is a link" in told(tools["write_file"], ok=False, path=path, content="x", overwrite=True)
    for path in ("up/secret.txt", "inner/b.csv", "loop/x"):
        assert "links are not followed" in told(tools["read_file"], ok=False, path=path)
        assert "links are not followed" in told(tools["write_file"], ok=False, path=path, content="x", overwrite=True)
    assert "links are not followed" in told(tools["list_files"], ok=False, folder="up")
    assert "up  (link, cannot be read)" in told(tools["list_files"])
    assert told(tools["list_files"], pattern="secret*") == "No file matches 'secret*'."
    assert (folder.parent / "secret.txt").read_text() == SECRET


@posix
def test_a_dangling_link_is_not_written_through(tools, folder):
    (folder / "new.txt").symlink_to(folder.parent / "planted.txt")
    assert "exists already" in told(tools["write_file"], ok=False, path="new.txt", content="x")
    assert not (folder.parent / "planted.txt").exists()


@posix
def test_only_regular_files_are_read_and_nothing_waits(tools, folder):
    os.mkfifo(folder / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "socket"))
    try:
        assert "is a pipe, not a file" in told(tools["read_file"], ok=False, path="pipe")
        assert "is a socket, not a file" in told(tools["read_file"], ok=False, path="socket")
        assert "is a pipe" in told(tools["write_file"], ok=False, path="pipe", content="x", overwrite=True)
    finally:
        server.close()


@linux
def test_devices_and_magic_links_are_refused(way):
    [_, read] = file_tools("/dev")
    assert "is a device, not a file" in told(read, ok=False, path="zero")
    [listing, read] = file_tools("/proc/self")
    assert "links are not followed" in told(read, ok=False, path="root/etc/passwd")
    assert "links are not followed" in told(read, ok=False, path="cwd/pyproject.toml")
    assert "links are not followed" in told(listing, ok=False, folder="cwd")
    assert "is a link" in told(read, ok=False, path="exe")


@pytest.fixture
def swapping():
    """A function that swaps two names, atomically, as fast as it can until the test ends."""
    exchange = getattr(ctypes.CDLL(None), "renameat2", None)
    if exchange is None:
        pytest.skip("this C library has no renameat2")
    stop, threads = threading.Event(), []

    def swap(one: Path, other: Path) -> None:
        def work() -> None:
            while not stop.is_set():
                assert exchange(-100, os.fsencode(one), -100, os.fsencode(other), 2) == 0

        threads.append(threading.Thread(target=work))
        threads[-1].start()

    yield swap
    stop.set()
    for thread in threads:
        thread.join()


@linux
def test_a_parent_swapped_during_the_call_leads_nowhere(folder, swapping):
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "b.csv").write_text(SECRET)
    (folder / "spare").symlink_to(outside)
    root, read, refused = Folder(folder), 0, 0
    swapping(folder / "deep", folder / "spare")
    for turn in range(1000):
        try:
            assert root.read("deep/b.csv", 100) == b"x,y\n1,2\n"
            root.write(f"deep/w{turn % 5}", b"data", overwrite=True)
            read += 1
        except InputError:
            refused += 1
    assert sorted(path.name for path in outside.iterdir()) == ["b.csv"]
    assert (outside / "b.csv").read_text() == SECRET
    assert read and refused, "the race was not run"


@linux
def test_a_file_swapped_for_a_link_during_the_call_leads_nowhere(folder, way, swapping):
    (folder / "spare").symlink_to(folder.parent / "secret.txt")
    root, read, refused = Folder(folder), 0, 0
    swapping(folder / "a.txt", folder / "spare")
    for _ in range(1000):
        try:
            assert root.read("a.txt", 100) == b"one\ntwo\nthree\n"
            read += 1
        except InputError:
            refused += 1
    assert read and refused, "the race was not run"


@posix
def test_a_hard_link_is_a_file_and_writing_leaves_its_other_name_alone(tools, folder):
    other = folder.parent / "other.txt"
    other.write_text("shared")
    os.link(other, folder / "hard.txt")
    assert told(tools["read_file"], path="hard.txt") == "shared"
    told(tools["write_file"], path="hard.txt", content="mine", overwrite=True)
    assert (other.read_text(), (folder / "hard.txt").read_text()) == ("shared", "mine")


@posix
def test_a_folder_that_was_replaced_is_noticed(tools, folder):
    folder.rename(folder.parent / "moved")
    folder.symlink_to(folder.parent)
    assert told(tools["read_file"], ok=False, path="secret.txt")
    folder.unlink()
    folder.mkdir()
    (folder / "a.txt").write_text("other")
    assert "was replaced" in told(tools["read_file"], ok=False, path="a.txt")


@posix
@pytest.mark.skipif(os.name != "nt" and os.geteuid() == 0, reason="root may open everything")
def test_a_file_without_permission_is_refused(tools, folder):
    (folder / "a.txt").chmod(0)
    assert "may not be opened" in told(tools["read_file"], ok=False, path="a.txt")


def test_names_that_look_like_more_are_quoted(tools, folder):
    if os.name != "nt":
        (folder / "x\nAction: rm").touch()
        assert "'x\\nAction: rm'  0 bytes" in told(tools["list_files"])
        assert told(tools["read_file"], path="x\nAction: rm") == "The file is empty."
    assert "cannot be seen" in told(tools["write_file"], ok=False, path="x\ny", content="")


def test_a_path_that_no_system_can_encode_is_refused():
    with pytest.raises(InputError, match="cannot be a path"):
        split("\ud800")


def test_names_of_windows_are_refused_there(monkeypatch):
    monkeypatch.setattr(beneath, "_WINDOWS", True)
    assert split("a\\b/c") == ["a", "b", "c"]
    for path in ("C:\\x", "c:x", "\\\\host\\share", "a.txt:stream", "NUL", "con.txt", "a.", "deep\\lpt1", "..\\x"):
        with pytest.raises(InputError):
            split(path)


def test_an_unfinished_write_leaves_nothing(folder, way, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="No space left"):
        Folder(folder).write("c.txt", b"x", overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "deep"]


def test_without_hard_links_the_name_is_taken_first(folder, way, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    root = Folder(folder)
    root.write("c.txt", b"x")
    with pytest.raises(FileExistsError):
        root.write("c.txt", b"y")
    assert root.read("c.txt", 9) == b"x"


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(InputError, match="create it first"):
        file_tools(tmp_path / "none")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (16 << 20, "16 MiB"), (1 << 41, "2 TiB")],
)
def test_sizes(size, text):
    assert size_text(size) == text


def test_the_documentation_is_true():
    page = Path(__file__).parents[2] / "docs" / "tools" / "files.md"
    assert doctest.testfile(str(page), module_relative=False).failed == 0
