"""What works on this machine: Python, torch, devices, the embedded model, the sandbox, optional packages."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from qwen_agent.errors import SandboxUnavailable
from qwen_agent.llm.hub import EMBEDDED

# extra -> (what it is for, the packages that it brings)
EXTRAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "mcp": ("tools of MCP servers, and ours for MCP clients", ("mcp",)),
    "pdf": ("PDF files", ("pypdf",)),
    "search": ("web_search without a key", ("ddgs",)),
    "web": ("web_page", ("lxml",)),
    "image": ("pictures with models of one's own", ("diffusers", "transformers", "accelerate", "pillow")),
    "ocr": ("read_text", ("rapidocr", "onnxruntime", "pillow")),
    "otel": ("spans of runs", ("opentelemetry-api", "opentelemetry-sdk")),
    "server": ("the server", ("fastapi", "starlette", "uvicorn", "prometheus-client")),
    "webui": ("the web page", ("fastapi", "starlette", "uvicorn", "prometheus-client", "gradio")),
    "eval": ("the scripts in eval/", ("lm-eval", "rouge-score", "json5", "sacrebleu", "matplotlib", "tqdm")),
    "smolagents": ("agents of smolagents", ("smolagents",)),
    "hf": (
        "the tools of Transformers Agents",
        ("transformers", "diffusers", "accelerate", "pillow", "lxml", "sentencepiece"),
    ),
    "langchain": ("LangChain and LangGraph", ("langchain-core",)),
}


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. ``needed`` is False for what only some tools want."""

    what: str
    ok: bool
    found: str
    fix: str = ""
    needed: bool = True


def checks() -> Iterator[Check]:
    """Every finding, the quick ones first."""
    yield _python()
    yield _name_clash()
    yield _embedded()
    yield from _torch()
    yield _sandbox()
    yield _optional("flash-attn", "faster prefill on CUDA", "pip install flash-attn (CUDA only)")
    for extra in EXTRAS:
        yield _extra(extra)


def _python() -> Check:
    version = platform.python_version()
    ok = sys.version_info >= (3, 10)
    return Check("Python", ok, f"{version} on {platform.platform()}", "" if ok else "use Python 3.10 or newer")


def _name_clash() -> Check:
    """PyPI's qwen-agent installs a package of the same import name, and whichever came last has overwritten files."""
    try:
        metadata.version("qwen-agent")
    except metadata.PackageNotFoundError:
        return Check("import name", True, "qwen_agent belongs to this package alone")
    fix = "pip uninstall qwen-agent, then pip install --force-reinstall --no-deps qwen-react-agent"
    return Check("import name", False, "PyPI's qwen-agent is installed too and shares the name qwen_agent", fix)


def _embedded() -> Check:
    weights = EMBEDDED / "model.safetensors"
    if not weights.is_file():
        return Check("embedded model", False, f"{weights} is missing", "reinstall qwen-react-agent")
    return Check("embedded model", True, f"{weights.stat().st_size / 1e6:.0f} MB")


def _torch() -> Iterator[Check]:
    try:
        import torch
    except ImportError as error:
        yield Check("PyTorch", False, f"cannot be imported ({error})", "pip install torch")
        return
    yield Check("PyTorch", True, f"{torch.__version__}, {torch.get_num_threads()} threads")
    capability = torch.backends.cpu.get_cpu_capability()
    packed = hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")
    fix = "" if packed else "pip install -U torch: without packed kernels quantised models are slow on the CPU"
    yield Check("CPU kernels", packed, f"{capability}, {'4-bit packed' if packed else 'no 4-bit kernel'}", fix, False)
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield Check("CUDA", True, names, needed=False)
    else:
        yield Check("CUDA", False, "no device; the CPU will be used", needed=False)


def _sandbox() -> Check:
    from qwen_agent.tools.sandbox.bubblewrap import require

    try:
        found = str(require())
    except SandboxUnavailable as error:
        return Check("sandbox", False, "code_interpreter cannot run", str(error), needed=False)
    return Check("sandbox", True, found, needed=False)


def _optional(package: str, use: str, fix: str) -> Check:
    if version := _version(package):
        return Check(package, True, f"{version} ({use})", needed=False)
    return Check(package, False, f"not installed ({use}); optional", fix, needed=False)


def _extra(extra: str) -> Check:
    use, packages = EXTRAS[extra]
    versions = {package: _version(package) for package in packages}
    missing = [package for package, version in versions.items() if not version]
    if missing:
        found = f"{', '.join(missing)} not installed ({use}); optional"
        return Check(extra, False, found, f"pip install 'qwen-react-agent[{extra}]'", needed=False)
    return Check(
        extra, True, f"{', '.join(f'{name} {version}' for name, version in versions.items())} ({use})", "", False
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
