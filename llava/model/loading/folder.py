"""Finds a checkpoint's folder, on disk or on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from llava.command import names_folder

PROJECTOR_FILE = "mm_projector.bin"
NON_LORA_FILE = "non_lora_trainables.bin"


def local_folder(path: str, safetensors: str = "*.safetensors", **hub: Any) -> Path:
    """Finds a checkpoint's folder, downloading a hub id; only its safetensors if it has any.

    Args:
        path: folder or hub id.
        safetensors: pattern of those to download.
        **hub: `cache_dir`, `revision`, `token`, ...

    Raises:
        FileNotFoundError: it is neither.
        PermissionError: the hub asks for a login.
    """
    if Path(path).is_dir():
        return Path(path)
    if Path(path).is_file():
        raise FileNotFoundError(f"{path!r} is a file; a checkpoint is a folder, or a model id of the hub (OWNER/NAME)")
    if names_folder(path):
        raise FileNotFoundError(f"there is no checkpoint folder {path!r}; model ids of the hub read OWNER/NAME")
    small = ["*.json", "*.jinja", "*.model", "*.txt", PROJECTOR_FILE, NON_LORA_FILE, "adapter_model.*"]
    try:
        folder = Path(snapshot_download(path, allow_patterns=[*small, safetensors], **hub))
        found = [file.name for file in folder.glob("*.safetensors")]
        if not any(name.startswith(("model", "adapter_model")) for name in found):  # not a prior alone
            folder = Path(snapshot_download(path, allow_patterns=[*small, "pytorch_model*.bin"], **hub))
    except GatedRepoError as error:
        raise PermissionError(f"{path!r} is gated: accept its terms on the hub, then log in or give token") from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{path!r} has no revision {hub.get('revision')!r} on the hub") from error
    except HFValidationError as error:
        raise FileNotFoundError(f"{path!r} is neither a folder nor of the form of a model id (OWNER/NAME)") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(f"{path!r} is neither a folder nor a model id that the hub knows") from error
    except LocalEntryNotFoundError as error:
        wanted = f"; wanted is its revision {hub['revision']!r}" if hub.get("revision") else ""
        raise FileNotFoundError(
            f"{path!r} is neither a folder nor a model id that the local cache holds, and the hub "
            f"{_describe_offline(hub)}{wanted}"
        ) from error
    return folder


def _describe_offline(hub: Mapping[str, Any]) -> str:
    if constants.HF_HUB_OFFLINE:
        return "was not asked (HF_HUB_OFFLINE=1)"
    return "was not asked (local_files_only)" if hub.get("local_files_only") else "cannot be asked (no connection)"
