"""The tokenizer and chat template of a run: the base's, the adapter's, or with the template that the user gives."""

import dataclasses
from pathlib import Path

from jaxpost.core.errors import InputError
from jaxpost.data.chat.given_template import give_template, read_template
from jaxpost.hub.grow import grow_vocabulary
from jaxpost.hub.model import Model
from jaxpost.hub.tokenizer_files import adapter_tokenizer


def with_tokenizer(model: Model, adapter: Path | None, option: str | None, *, trains_rows: bool) -> Model:
    """The model with the tokenizer of its adapter, where that has one, and then with the template that is given.

    Args:
      adapter: its folder; an adapter that was trained with another template is right with that one.
      option: `--chat-template`, which has the last word: see `with_chat_template`.
    """
    own = None if adapter is None else adapter_tokenizer(adapter, model.config.vocab_size)
    if own is not None:
        model = dataclasses.replace(model, given_tokenizer=own)
    return model if option is None else with_chat_template(model, option, trains_rows=trains_rows)


def with_chat_template(model: Model, option: str, *, trains_rows: bool) -> Model:
    """The model with a tokenizer that has the template; its EOS is the token that ends a turn.

    Args:
      option: "chatml" or a file.
      trains_rows: the embedding and the head are trained, so that new tokens can be learned.

    Raises:
      InputError: no such template; new tokens where their rows would stay untrained.
    """
    template = read_template(option)
    tokenizer = model.tokenizer
    new = give_template(tokenizer, template)
    if new and not trains_rows:
        raise InputError(
            f"`--chat-template` must write tokens that the tokenizer of {model.folder} has, as only `--full` "
            f"trains the rows of new ones; got {', '.join(new)}. Train with `--full`, or give a template without them."
        )
    model = grow_vocabulary(model, sorted(tokenizer.convert_tokens_to_ids(new)))
    return dataclasses.replace(model, given_tokenizer=tokenizer)
