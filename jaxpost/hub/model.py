"""A loaded language model: configuration, parameters, and the folder that it came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpost.core.errors import InputError
from jaxpost.core.files import read_json

if TYPE_CHECKING:  # so that readers of other formats need no jax
    from jaxpost.models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Model:
    """What `jaxpost.load` gives.

    Attributes:
      config: the static description that the model's functions take.
      params: the parameter tree, as `models.config.abstract_params(config)` describes it.
      folder: where config.json, weights and tokenizer lie; None for a model that was made in memory.
      hf_config: config.json as read; `save` writes it again.
      checkpoint_dtypes: dtype of each tensor in the source, by Hugging Face name; `save` keeps them.
      given_tokenizer: in place of the folder's, where a chat template was given; `save` writes it.
    """

    config: "ModelConfig"
    params: Any
    folder: Path | None = None
    hf_config: Mapping[str, Any] = field(default_factory=dict)
    checkpoint_dtypes: Mapping[str, str] = field(default_factory=dict)
    given_tokenizer: Any = None

    @cached_property
    def tokenizer(self) -> Any:
        """The folder's tokenizer as transformers reads it, loaded at first use; code in the folder is never run."""
        if self.given_tokenizer is not None:
            return self.given_tokenizer
        if self.folder is None:
            raise InputError("`model.tokenizer` must come from a folder; this model was made in memory.")
        return load_tokenizer(self.folder)

    @cached_property
    def written_stops(self) -> dict[str, frozenset[int]]:
        """By file the ids that it says end generation, none where it names none: config.json and
        generation_config.json may differ."""
        path = None if self.folder is None else self.folder / "generation_config.json"
        written = read_json(path) if path is not None and path.exists() else {}
        files = {"config.json": self.hf_config, "generation_config.json": written}
        return {name: ids_of(settings.get("eos_token_id")) for name, settings in files.items()}

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Every id that one of the files says ends generation, and the EOS of a given tokenizer."""
        given = None if self.given_tokenizer is None else self.given_tokenizer.eos_token_id
        return ids_of(given).union(*self.written_stops.values())


def ids_of(written: int | Sequence[int | None] | None) -> frozenset[int]:
    """The ids of an `eos_token_id`, which may be one, several or null.

    >>> ids_of(2), ids_of([2, 7]), ids_of(None)
    (frozenset({2}), frozenset({2, 7}), frozenset())
    """
    listed = written if isinstance(written, Sequence) else [written]
    return frozenset(i for i in listed if i is not None)


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer of a checkpoint folder; InputError in one line where there is none that can be read."""
    from transformers import AutoTokenizer  # slow to import, and not needed for weights

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # whatever the tokenizer's parser raises is about this file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{folder} must hold a tokenizer (tokenizer.json); got an error: {reason}.") from error
