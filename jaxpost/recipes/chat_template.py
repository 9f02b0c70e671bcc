"""`--chat-template`: a model with the template that the user gives, and with rows for the tokens that are new."""

import dataclasses

from jaxpost.core.errors import InputError
from jaxpost.data.chat.given_template import give_template, read_template
from jaxpost.hub.grow import grow_vocabulary
from jaxpost.hub.model import Model


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
            f"`--chat-template` must write tokens that the tokenizer of {model.folder} has, as an adapter does not "
            f"train the rows of new ones; got {', '.join(new)}. Train with `--full`, or give a template without them."
        )
    model = grow_vocabulary(model, sorted(tokenizer.convert_tokens_to_ids(new)))
    return dataclasses.replace(model, given_tokenizer=tokenizer)
