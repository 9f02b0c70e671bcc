"""What of a row is a prompt."""

import pytest
from refusals import refused

from jaxpost.data.prompts import make_prompt
from jaxpost.data.rows import make_row

ASK, SAY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
RESULT = {"role": "tool", "content": "found"}


@pytest.mark.parametrize(
    ("messages", "kept"),
    [
        ([ASK], 1),
        ([ASK, SAY], 1),
        ([ASK, SAY, SAY], 1),
        ([ASK, SAY, ASK, SAY], 3),
        ([ASK, CALL, RESULT], 3),
        ([ASK, CALL, RESULT, SAY], 3),
    ],
)
def test_messages_lose_their_last_answer_and_nothing_else(messages, kept):
    """What a tool gave is asked about, and so is in the prompt.

    Mutation: jaxpost/data/prompts.py: `while messages[end - 1]["role"] == "assistant":` -> `while messages[end - 1]["role"] != "user":`
    """  # noqa: E501
    assert make_prompt({"messages": messages}, "x").content == messages[:kept]
    assert make_prompt({"prompt": messages}, "x").content == messages


def test_a_day_that_is_a_text_is_refused():
    """Whether or not the template asks for the day; neither the row nor the template is blamed.

    Mutation: jaxpost/data/rows.py: `        if not isinstance(self.date, datetime.date | None):` -> `        if False:`
    """
    row = make_row({"messages": [{"role": "user", "content": "a"}]}, source=1, where="x line 1")
    object.__setattr__(row, "date", "2025-01-31")  # as a caller without the type checks of these tests can
    refused(row.__post_init__, "`date` must be a day", "got '2025-01-31'")
