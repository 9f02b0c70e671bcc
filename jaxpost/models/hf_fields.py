"""Strict reading of a Hugging Face config.json: a key is understood, known to be harmless, off, or refused."""

import math
from collections.abc import Mapping
from typing import Any

from jaxpost.core.errors import InputError, suggestion

REQUIRED = object()

# The one table of leftovers that change no result. Everything else that is set must be asked for by the family.
_HARMLESS = frozenset(
    # where the file comes from
    "_name_or_path _commit_hash name_or_path transformers_version transformers.js_config model_type architectures"
    " auto_map torch_dtype dtype is_llama_config is_decoder"
    # how transformers computes and what it returns
    " use_cache cache_implementation attn_implementation _attn_implementation _attn_implementation_autoset"
    " _attn_implementation_internal _flash_attn_2_enabled use_flash_attention_2 _experts_implementation"
    " _experts_implementation_internal return_dict use_return_dict output_attentions output_hidden_states"
    " gradient_checkpointing torchscript"
    # how it was trained: initial weights, noise on embeddings
    " initializer_range neftune_noise_alpha"
    # tokenizer and lengths: nothing here is cut or indexed by position
    " tokenizer_class bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id"
    " decoder_start_token_id forced_bos_token_id forced_eos_token_id max_position_embeddings model_max_length"
    " max_sequence_length tokenizer_model_max_length tokenizer_padding_side"
    # heads of other tasks
    " num_labels id2label label2id problem_type task_specific_params finetuning_task prefix"
    # settings of generation, kept in the file
    " max_length max_new_tokens min_length do_sample early_stopping num_beams num_beam_groups num_return_sequences"
    " temperature top_k top_p typical_p repetition_penalty length_penalty diversity_penalty no_repeat_ngram_size"
    " encoder_no_repeat_ngram_size bad_words_ids suppress_tokens begin_suppress_tokens return_dict_in_generate"
    " output_scores remove_invalid_values".split()
)
_HARMLESS_PREFIXES = ("unsloth_",)
_HARMLESS_VALUES = {"pretraining_tp": 1, "chunk_size_feed_forward": 0, "partial_rotary_factor": 1}
_HARMLESS_ENDINGS = {"_dropout": 0, "_pdrop": 0}


class Fields:
    """A configuration being read; what is asked for counts as understood, `refuse_leftovers` names the rest.

    A key that is null reads as if it were absent (`optional` alone tells the two apart).
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values = values
        self.where = where
        self._understood: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """The value of `name`, or `default` where it is absent or null."""
        self._understood.add(name)
        value = self.values.get(name)
        if value is None and default is REQUIRED:
            raise InputError(f"`{name}` must be given; got none in {self.where}. Is the file complete?")
        return default if value is None else value

    def optional(self, name: str, absent: Any) -> Any:
        """The value of `name`; null is None ("off"), and `absent` is the family's default without the key."""
        self._understood.add(name)
        return self.values.get(name, absent)

    def integer(self, name: str, default: Any = REQUIRED, minimum: int = 1) -> int:
        """An integer of at least `minimum`."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.error(name, f"an integer of at least {minimum}", value)
        return value

    def positive(self, name: str, default: Any = REQUIRED) -> float:
        """A finite number above zero."""
        value = self.get(name, default)
        if not is_positive(value):
            raise self.error(name, "a number above 0", value)
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """A boolean."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "true or false", value)
        return value

    def error(self, name: str, rule: str, got: Any, hint: str = "Is config.json damaged?") -> InputError:
        """The error that `name` breaks `rule`."""
        return InputError(f"`{name}` must be {rule}; got {shown(got)} in {self.where}. {hint}")

    def refuse_leftovers(self, family: str) -> None:
        """Raise InputError naming the keys that are set and neither understood nor harmless."""
        unread = [(key, value) for key, value in self.values.items() if key not in self._understood]
        left = [key for key, value in unread if not is_off(value) and not _harmless(key, value)]
        if not left:
            return
        name = left[0]
        others = f" (and {len(left) - 1} more: {', '.join(left[1:6])})" if len(left) > 1 else ""
        raise self.error(
            name + others,
            f"a setting that jaxpost understands for {family}",
            self.values[name],
            "It may change the result, so it is refused; remove it from config.json if it is a leftover."
            + suggestion(name, self._understood),
        )


def is_positive(value: Any) -> bool:
    """Whether `value` is a finite number above zero (booleans are not numbers)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def is_off(value: Any) -> bool:
    """Whether a setting is null, false or empty, down through nested dictionaries.

    >>> is_off({"a": None, "b": {}}), is_off(0)
    (True, False)
    """
    if isinstance(value, dict):
        return all(is_off(v) for v in value.values())
    return value is None or value is False or value == "" or value == []


def shown(value: Any, limit: int = 80) -> str:
    """`value` as it stands in an error: its repr, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _harmless(name: str, value: Any) -> bool:
    if name in _HARMLESS or name.startswith(_HARMLESS_PREFIXES):
        return True
    if name in _HARMLESS_VALUES:
        return value == _HARMLESS_VALUES[name]
    return any(name.endswith(end) and value == ok for end, ok in _HARMLESS_ENDINGS.items())
