"""The conversation of `jaxpost generate --chat`: a line in, the answer as it comes."""

import sys

from jaxpost.core.errors import InputError
from jaxpost.data.prompts import Prompt
from jaxpost.sampling.generate import Generator, Limits

HELP = "Type a message; /clear starts anew, /exit ends."
UNFINISHED = "\ufffd"  # what a character reads as whose last bytes are still to come


def converse(generator: Generator, limits: Limits, *, temperature: float, seed: int) -> None:
    """Reads lines from stdin until /exit or its end. A turn that does not fit is said and forgotten.

    Raises:
      InputError: the model has no chat template.
    """
    _ready(generator, limits)
    print(HELP, file=sys.stderr)
    messages: list[dict[str, str]] = []
    while (line := _read()) is not None:
        if line == "/clear":
            messages = []
        elif line:
            asked = [*messages, {"role": "user", "content": line}]
            try:
                said = _answer(generator, asked, limits, temperature, seed)
            except InputError as error:
                print(f"jaxpost: {error}", file=sys.stderr)
                continue
            messages = [*asked, {"role": "assistant", "content": said}]


def _ready(generator: Generator, limits: Limits) -> None:
    """Fails before the first line where no line could be answered."""
    trial = Prompt(content=[{"role": "user", "content": "hello"}], where="a trial message")
    generator.encode(trial, limits)


def _read() -> str | None:
    """The next line; None at the end."""
    try:
        line = input("> ").strip()
    except EOFError:
        print()
        return None
    return None if line == "/exit" else line


def _answer(generator: Generator, messages: list, limits: Limits, temperature: float, seed: int) -> str:
    """Prints the answer piece by piece and returns it."""
    shown, text = "", ""
    prompt = Prompt(content=messages, where="the conversation")
    for completion in generator.stream(prompt, limits=limits, temperature=temperature, seed=seed):
        text = completion.text
        ready = text.rstrip(UNFINISHED)
        if ready.startswith(shown):
            print(ready[len(shown) :], end="", flush=True)
            shown = ready
    print(text[len(shown) :], flush=True)
    return text
