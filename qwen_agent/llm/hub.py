"""Where models come from: "embedded", a local folder, or a hub id such as Qwen/Qwen-7B-Chat."""

from __future__ import annotations

import re
from pathlib import Path

from qwen_agent.errors import InputError, ModelNotFound

EMBEDDED = Path(__file__).parent / "embedded"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_WANTED = ("*.json", "*.safetensors", "*.bin", "*.tiktoken", "*.txt")
# Safetensors repositories often carry the same weights twice more; these are never read here.
_UNWANTED = ("*.msgpack", "*.h5", "*.onnx", "onnx/*", "original/*", "*/*.bin", "training_args.bin", "optimizer.bin")


def resolve_model(
    model: str | Path, *, revision: str | None = None, endpoint: str | None = None, offline: bool = False
) -> Path:
    """The folder of a model, downloading it first if ``model`` is a hub id that is not in the cache yet.

    ``endpoint`` is a hub mirror's base URL (default: the HF_ENDPOINT variable or huggingface.co, read by
    huggingface_hub itself). A download shows progress and continues where an earlier one was cut off. ``offline``
    uses only what is already in the cache. Raises InputError or ModelNotFound with the fix.
    """
    name = str(model)
    if not name.strip():
        raise InputError("the model name is empty: give 'embedded', a folder, or a hub id such as Qwen/Qwen-7B-Chat")
    if name == "embedded":
        return EMBEDDED
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ModelNotFound(f"{name} is a file: give the folder that holds config.json and the weights")
    if not _HUB_ID.fullmatch(name) or name.startswith((".", "/", "~")):
        raise ModelNotFound(
            f"there is no model {name!r}: give 'embedded', an existing folder, or a hub id such as Qwen/Qwen-7B-Chat"
        )
    return _download(name, revision=revision, endpoint=endpoint, offline=offline)


def _download(name: str, *, revision: str | None, endpoint: str | None, offline: bool) -> Path:
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def fetch(*unwanted: str) -> Path:
        folder = snapshot_download(
            name,
            revision=revision,
            endpoint=endpoint,
            allow_patterns=list(_WANTED),
            ignore_patterns=[*_UNWANTED, *unwanted],
            local_files_only=offline,
        )
        return Path(folder)

    try:
        # pytorch_model.bin only where there are no safetensors: a repository may hold the same weights in both.
        folder = fetch("*.bin")
        return folder if any(folder.glob("*.safetensors")) else fetch()
    except RevisionNotFoundError:
        raise ModelNotFound(f"{name} has no revision {revision!r} on the hub") from None
    except GatedRepoError:
        raise ModelNotFound(f"{name} needs you to accept its licence on the hub and to run `hf auth login`") from None
    except RepositoryNotFoundError:
        raise ModelNotFound(
            f"there is no folder and no public hub model {name!r}: check the spelling, or log in for a private one"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ModelNotFound(
            f"{name} is not (wholly) in the local cache and the hub cannot be used (offline, or no connection): "
            f"connect and run again, or give a local folder"
        ) from None
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelNotFound(
            f"{name} could not be downloaded ({reason}); run the same command again to continue where it stopped"
        ) from None
