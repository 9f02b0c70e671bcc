"""Where a model comes from: a folder, or a Hugging Face Hub id that is fetched into one; and its configuration."""

import re
from pathlib import Path
from typing import Any

from jaxpost.core.errors import InputError
from jaxpost.core.files import read_json
from jaxpost.models.config import ModelConfig
from jaxpost.models.families import config_from_hf

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FETCHED = [
    "*.json",
    "*.safetensors",
    "*.jinja",
    "*.model",
    "*.txt",
    "additional_chat_templates/*",
]  # no pickle, no code


def find_folder(path: str | Path, name: str = "model") -> Path:
    """`path` as a local folder; a Hub id is downloaded (weights only as safetensors, no code) or taken from the cache.

    Raises:
      InputError: neither a folder nor an id that can be had; a file.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        hint = " Run `jaxpost import` on it first." if folder.suffix == ".gguf" else ""
        raise InputError(f"`{name}` must be a folder or a Hub id; got the file {path}.{hint}")
    if not _HUB_ID.fullmatch(str(path)):
        raise InputError(f"`{name}` must be a folder or a Hub id; got {path}, which does not exist.")
    from huggingface_hub import snapshot_download  # slow to import

    try:
        return Path(snapshot_download(str(path), allow_patterns=_FETCHED))
    except Exception as error:  # offline, unknown, gated, full disk: each has its own class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"`{name}` must be a folder or a Hub id; got {path}: no such folder, and it cannot be fetched ({reason})"
        ) from error


def read_config(folder: Path) -> tuple[dict[str, Any], ModelConfig]:
    """config.json of a folder as read, and as the configuration of the model."""
    path = folder / "config.json"
    if not path.exists():
        raise InputError(f"{folder} must hold config.json; got none. Is it a model's folder, and fetched whole?")
    hf = read_json(path)
    if not isinstance(hf, dict):
        raise InputError(f"{path} must hold a JSON object; got {type(hf).__name__}.")
    return hf, config_from_hf(hf, str(path))
