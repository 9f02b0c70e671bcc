"""A template that the user gives, for tokenizers without one or with another: `chatml`, or a file."""

import re
from pathlib import Path
from typing import Any

from jaxpost.core.errors import InputError
from jaxpost.data.chat.template import folder_of, has_generation_tags, turn_marks
from jaxpost.data.chat.twins import family_templates

# What a template writes as one token: <|im_start|>. Other brackets, <tools> say, may be meant as text.
_TOKEN = re.compile(r"<[|｜][^\s<>{}'\"+]+[|｜]>")


def read_template(option: str) -> str:
    """The text of `chatml` or of a file.

    Raises:
      InputError: no such file, no text, no Jinja.
    """
    if option == "chatml":
        return family_templates()["chatml"]
    try:
        text = Path(option).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "bytes that are no UTF-8"
        raise InputError(
            f"`--chat-template` must be chatml or a file with a Jinja template; got {option} ({reason}). Name such a "
            "file."
        ) from None
    has_generation_tags(text, option)
    if "messages" not in text:
        raise InputError(f"`--chat-template` must be a template that writes `messages`; got another text in {option}.")
    return text


def give_template(tokenizer: Any, template: str) -> list[str]:
    """Gives the tokenizer the template, and as tokens what the template writes as such; its EOS becomes the token that
    ends a turn.

    Returns:
      the tokens that the tokenizer did not have before.

    Raises:
      InputError: the template cannot render a question and an answer.
    """
    from transformers import AddedToken  # slow to import

    tokenizer.chat_template = template
    written = dict.fromkeys(_TOKEN.findall(template))
    lacking = [token for token in written if not _is_token(tokenizer, token)]
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=True) for token in lacking], special_tokens=True)
    turn = turn_marks(tokenizer, template, {})
    if not turn.tail and not turn.supplied:
        raise InputError(
            "`--chat-template` must render a question, an answer and a generation prompt; got a template that does not "
            f"with the tokenizer at {folder_of(tokenizer)}. Fix it."
        )
    own = [token for token in written if turn.tail.strip().startswith(token)]
    if own:
        tokenizer.eos_token = max(own, key=len)
    return [token for token in lacking if token not in known]


def _is_token(tokenizer: Any, token: str) -> bool:
    return len(tokenizer(token, add_special_tokens=False)["input_ids"]) == 1 and token in tokenizer.get_vocab()
