"""What of a row is a prompt."""

import pytest

from jaxpost.data.prompts import make_prompt

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
