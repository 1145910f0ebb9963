"""Every built-in tool is in the catalog, and either works or says the one thing that makes it work."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import qwen_agent.tools
from qwen_agent.errors import InputError, MissingDependency, QwenAgentError, SandboxUnavailable
from qwen_agent.tools.base import Tool, toolbox
from qwen_agent.tools.catalog import Settings, build_tools, catalog

TOOLS = Path(qwen_agent.tools.__file__).parent
REMEDY = re.compile(r"add --[a-z-]+|pip install '|apt-get install|install bubblewrap|--allow|unsafe|sysctl")
# What extras bring; a plain install has none of it.
EXTRAS = (
    "ddgs lxml pypdf pypdfium2 pymupdf diffusers transformers accelerate rapidocr onnxruntime cv2 PIL matplotlib "
    "pandas mcp httpx2 starlette uvicorn fastapi opentelemetry langchain_core smolagents openai pint trafilatura"
)
PLAIN = """
import json, sys
from pathlib import Path

class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        blocked = name.partition(".")[0] in sys.argv[2].split()
        return None if blocked else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from qwen_agent.errors import QwenAgentError
from qwen_agent.tools.catalog import Settings, catalog

given = json.loads(sys.argv[1])
for key in ("docs", "files", "artifacts"):
    if key in given:
        given[key] = Path(given[key])
told = {}
for entry in catalog().values():
    try:
        told[entry.name] = ["", *(tool.name for tool in entry.build(Settings(**given)))]
    except QwenAgentError as error:
        told[entry.name] = [type(error).__name__, str(error)]
print(json.dumps(told))
"""


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("The tower is 330 m tall.")
    return {"docs": str(tmp_path / "docs"), "files": str(tmp_path / "docs"), "artifacts": str(tmp_path / "made")}


def build_all(given: dict[str, Any]) -> dict[str, list[str]]:
    """What becomes of every entry in a plain install."""
    command = [sys.executable, "-c", PLAIN, json.dumps(given), EXTRAS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, list[str]] = json.loads(done.stdout)
    return told


def test_in_a_plain_install_without_options_each_works_or_says_its_remedy() -> None:
    told = build_all({})
    assert told.keys() == catalog().keys()
    for name in ("calculator", "current_time", "convert_units"):
        assert told[name] == ["", name]
    for name, (error, *words) in told.items():
        assert not error or REMEDY.search(words[0]), (name, error, words)
    assert told["search"] == ["InputError", "search needs a folder of documents: add --docs DIR"]
    assert told["files"][0] == told["read_text"][0] == told["generate_image"][0] == "InputError"


def test_in_a_plain_install_with_every_option_only_packages_are_missing(folders: dict[str, Any]) -> None:
    models = {"image_model": "owner/name", "vision_model": "owner/name"}
    told = build_all({**folders, **models})
    assert told["search"] == ["", "search"]
    assert told["files"] == ["", "list_files", "read_file"]
    for name in ("web_search", "web_page", "generate_image", "read_text", "describe_image"):
        assert told[name][0] in ("", "MissingDependency"), told[name]
        assert not told[name][0] or "pip install 'qwen-react-agent[" in told[name][1]
    assert told["code_interpreter"][0] in ("", "SandboxUnavailable")


def test_services_behind_addresses_need_no_package(folders: dict[str, Any]) -> None:
    services = {
        "web": {"SEARXNG_URL": "http://127.0.0.1:8080"},
        "image_url": "http://127.0.0.1:8000/v1",
        "vision_url": "http://127.0.0.1:8000/v1",
        "vision_model": "some-model",
    }
    told = build_all({**folders, **services})
    assert told["web_search"] == ["", "web_search"]
    assert told["generate_image"] == ["", "generate_image"]
    told = build_all({**folders, "image_url": "http://127.0.0.1/{prompt}"})
    assert told["generate_image"] == ["", "generate_image"]


def test_every_built_tool_has_a_name_of_its_own_and_declares_what_it_may_do(folders: dict[str, Any]) -> None:
    settings = Settings(**{key: Path(value) for key, value in folders.items()}, write=True)
    built: list[Tool] = []
    for entry in catalog().values():
        try:
            built += entry.build(settings)
        except (InputError, MissingDependency, SandboxUnavailable):
            continue
    box = toolbox(built)
    assert {"calculator", "search", "list_files", "read_file", "write_file"} <= box.keys()
    assert box["write_file"].side_effects
    assert box["search"].untrusted
    assert box["read_file"].untrusted


def test_entries_are_told_in_words() -> None:
    for name, entry in catalog().items():
        assert entry.name == name
        assert re.fullmatch(r"[a-z_]+", name)
        assert entry.summary[0].isupper()
        assert not entry.summary.endswith(".")


def test_tools_are_built_by_name_in_order(folders: dict[str, Any]) -> None:
    settings = Settings(files=Path(folders["files"]), brief=True)
    names = [tool.name for tool in build_tools(["files", "calculator", "files"], settings)]
    assert names == ["list_files", "read_file", "calculator"]
    assert build_tools([], settings) == ()
    with pytest.raises(InputError, match="there is no tool 'serach': choose from calculator, current_time"):
        build_tools(["serach"], settings)


def test_a_brief_search_gives_one_passage(folders: dict[str, Any]) -> None:
    (tool,) = build_tools(["search"], Settings(docs=Path(folders["docs"]), brief=True))
    assert tool.invoke({"query": "tower"}).content == "The tower is 330 m tall."


def test_keys_are_not_shown() -> None:
    settings = Settings(web={"SERPER_API_KEY": "hidden"}, image_key="hidden", vision_key="hidden")
    assert "hidden" not in repr(settings)
    assert dataclasses.replace(settings, brief=True).image_key == "hidden"


def test_every_module_that_makes_a_tool_is_in_the_catalog() -> None:
    """A new tool is easily forgotten here."""
    source = (TOOLS / "catalog.py").read_text(encoding="utf-8")
    builders = ("base", "mcp", "mcp_values", "plugins", "catalog", "index", "schema")
    for file in sorted(TOOLS.glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        makes = any(
            isinstance(node, ast.ImportFrom)
            and node.module == "qwen_agent.tools.base"
            and {"Tool", "tool"} & {alias.name for alias in node.names}
            for node in ast.walk(tree)
        )
        if makes and file.stem not in (*builders, "__init__"):
            assert f"qwen_agent.tools.{file.stem} import" in source, f"{file.stem} makes a tool that has no entry"


def test_building_raises_only_our_own_errors(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    settings = Settings(docs=missing, files=missing, workdir=missing, artifacts=tmp_path / "a", image_url="nonsense")
    for entry in catalog().values():
        try:
            entry.build(settings)
        except QwenAgentError as error:
            assert str(error)
