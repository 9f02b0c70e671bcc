"""A tokenizer that is not the checkpoint's own any more, as files, and the ids that end generation with it."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxpost.core.errors import InputError
from jaxpost.core.files import read_json
from jaxpost.hub.model import load_tokenizer

# Older files that say the same in other words; they would stand beside the new ones and contradict them.
_STALE = ("special_tokens_map.json", "added_tokens.json", "chat_template.json", "vocab.json", "merges.txt")
_STALE_FOLDER = "additional_chat_templates"


def write_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja, in place of what is there."""
    for name in _STALE:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / _STALE_FOLDER, ignore_errors=True)
    tokenizer.save_pretrained(str(folder))


def write_stop_ids(folder: Path, ids: Iterable[int]) -> None:
    """Let generation_config.json name every one of the ids that end generation; those that it has stay first."""
    path = folder / "generation_config.json"
    settings = read_json(path) if path.exists() else {}
    had = settings.get("eos_token_id")
    listed = [i for i in (had if isinstance(had, list) else [had]) if i is not None]
    listed += sorted(set(ids) - set(listed))
    settings["eos_token_id"] = listed[0] if len(listed) == 1 else listed
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def adapter_tokenizer(folder: Path, vocab_size: int) -> Any:
    """The tokenizer that an adapter's folder holds, if it has one with a chat template; else None.

    An adapter that was trained with `--chat-template` is right with that template only. The template may lie beside
    the tokenizer's settings or in them.

    Raises:
      InputError: it has more tokens than the base has rows.
    """
    tokenizer = load_tokenizer(folder) if (folder / "tokenizer.json").exists() else None
    if tokenizer is None or not tokenizer.chat_template:
        return None
    if (top := max(tokenizer.get_vocab().values())) >= vocab_size:
        raise InputError(
            f"the tokenizer of an adapter must have ids below the base's {vocab_size} rows; got {top} in {folder}. "
            "Use the base that it was trained on, or remove the tokenizer's files."
        )
    return tokenizer
