"""What a refusal of the user's input looks like: one line that names what is wrong."""

from collections.abc import Callable
from typing import Any

import pytest

from jaxpost.core.errors import InputError


def refused(call: Callable[[], Any], *mentions: str) -> str:
    """Call it, expect an `InputError` of one line that holds every one of `mentions`, and return the line."""
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600, text
    for mention in mentions:
        assert mention in text, f"{mention!r} is not in {text!r}"
    return text
