"""Reasoning: neither lost nor doubled, whatever form it comes in, and what the prompt opens is not trained."""

import itertools

import families
import pytest
import toy_tokenizer as toys

from jaxpost.core.errors import InputError
from jaxpost.data.chat.masks import encode_chats
from jaxpost.data.chat.prompt import encode_prompt
from jaxpost.data.chat.turns import Chat
from jaxpost.data.chat.twins import family_templates
from jaxpost.data.rows import make_row

THINKERS = ("qwen3", "qwen3_thinking_2507")


def encode(chat, messages, **columns):
    columns = columns if "completion" in columns else {"messages": messages, **columns}
    (encoded,) = encode_chats(chat, [make_row(columns, source=1, where="data.jsonl line 1")])
    return encoded


def trained_texts(chat, encoded):
    pairs = zip(encoded.ids.tolist(), encoded.trained.tolist(), strict=True)
    groups = itertools.groupby(pairs, key=lambda pair: pair[1])
    return [chat.tokenizer.decode([index for index, _ in group]) for trained, group in groups if trained]


def family(name):
    return Chat(tokenizer=families.tokenizer(name))


def answer(content, **fields):
    return [{"role": "user", "content": "q"}, {"role": "assistant", "content": content, **fields}]


@pytest.mark.parametrize("name", THINKERS)
def test_D14_reasoning_in_any_form_is_trained_once(name):
    """Beside the content, in it, or in it with the closing mark alone, as a sampled answer has it: the same ids.

    Mutation: jaxpost/data/chat/marking.py: `answers = message.get("role") == "assistant" and` -> `answers = False and`
    """
    chat = family(name)
    forms = [answer("yes", **{key: "let us see"}) for key in ("reasoning_content", "thinking", "reasoning")]
    forms += [answer(text) for text in ("<think>\nlet us see\n</think>\n\nyes", "let us see\n</think>\n\nyes")]
    encoded = [encode(chat, messages) for messages in forms]
    assert len({tuple(each.ids.tolist()) for each in encoded}) == 1
    opened = "<think>\n" if name == "qwen3" else ""
    assert trained_texts(chat, encoded[0]) == [f"{opened}let us see\n</think>\n\nyes<|im_end|>"]
    assert not any(each.spelled for each in encoded)
    ids = encoded[0].ids.tolist()
    assert [ids.count(chat.tokenizer.convert_tokens_to_ids(mark)) for mark in ("<think>", "</think>")] == [1, 1]


@pytest.mark.parametrize("content", ["hm\n</think>\nyes", "<think>\nhm\n</think>\nyes"])
def test_D14_an_answer_whose_prompt_opened_the_reasoning_has_the_opening_once(content):
    """The template writes the answer as it is and opens `<think>` in the generation prompt.

    Mutation: jaxpost/data/chat/prepare.py: `"content": turn.opening + content.lstrip()` -> `"content": content`
    """
    chat = Chat(tokenizer=toys.toy(toys.OPENED))
    encoded = encode(chat, answer(content))
    assert trained_texts(chat, encoded) == ["hm\n</think>\nyes<|im_end|>"]
    assert chat.tokenizer.decode(encoded.ids).count("<think>\n") == 1
    prompt = encode_prompt(chat, answer(content)[:1])
    assert encoded.ids.tolist()[: len(prompt)] == prompt


@pytest.mark.parametrize("name", ["chatml", "deepseek_r1_distill"])
@pytest.mark.parametrize("form", ["beside", "inside"])
def test_D14_reasoning_that_the_template_drops_is_refused(name, form):
    """ChatML knows no `reasoning_content`; DeepSeek's template cuts the reasoning from every answer.

    Mutation: jaxpost/data/chat/prepare.py: `_require(chat, ready, f"messages[{index}].reasoning_content", _reasoning(message), said)` -> `pass`
    """  # noqa: E501
    messages = answer("yes", reasoning_content="let us see") if form == "beside" else answer("<think>hm</think>yes")
    if (name, form) == ("chatml", "inside"):
        assert trained_texts(family(name), encode(family(name), messages)) == ["<think>hm</think>yes<|im_end|>"]
        return
    with pytest.raises(InputError, match=rf"toy/{name}.*messages\[1\].reasoning_content.*line 1") as caught:
        encode(family(name), messages)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", THINKERS)
@pytest.mark.parametrize("form", ["beside", "inside"])
def test_D8_an_earlier_turn_whose_reasoning_is_dropped_is_never_trained_without_it(name, form):
    """Refused by name where that turn is to be trained; the last turn of the same conversation is trained whole.

    Mutation: jaxpost/data/chat/prepare.py: `text[start:end] for turn, (start, end)` -> `text for turn, (start, end)`
    """
    chat = family(name)
    fields = {"reasoning_content": "first thought"} if form == "beside" else {}
    first = answer("yes" if form == "beside" else "<think>\nfirst thought\n</think>\n\nyes", **fields)
    messages = [*first, *answer("<think>\nfirst thought\n</think>\n\nno")]
    with pytest.raises(InputError, match=rf"toy/{name}.*messages\[1\].reasoning_content.*line 1.*end the row"):
        encode(chat, messages)
    encoded = encode(chat, None, prompt=messages[:3], completion=messages[3:])
    assert encoded.ids.tolist() == chat.tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    (said,) = trained_texts(chat, encoded)
    assert said.removeprefix("<think>\n") == "first thought\n</think>\n\nno<|im_end|>"


def test_D16_a_thinking_template_of_no_family_is_refused():
    """Its prefixes do not make up the whole, and no template of ours renders the same.

    Mutation: jaxpost/data/chat/spans.py: `if not (text.startswith(before) and text.startswith(after) and len(before) <= len(after)):` -> `if False:`
    """  # noqa: E501
    chat = Chat(tokenizer=toys.toy(toys.THINKING))
    with pytest.raises(InputError, match="toy/folder.*message 1.*Add the tags"):
        encode(chat, [*answer("<think>a</think>yes"), *answer("no")])


def test_D15_an_empty_reasoning_that_the_prompt_supplies_is_not_trained():
    """`enable_thinking` off: the prompt holds the empty block, so training leaves it out; on: the answer holds it.

    Mutation: jaxpost/data/chat/spans.py: `            return place + len(header)` -> `            return place`
    """
    off = {"enable_thinking": False}
    for template in (None, family_templates()["qwen3"]):  # by prefixes and by tags
        chat = Chat(tokenizer=families.tokenizer("qwen3", template))
        encoded = encode(chat, answer("yes"), chat_template_kwargs=off)
        assert trained_texts(chat, encoded) == ["yes<|im_end|>"]
        prompt = encode_prompt(chat, answer("yes")[:1], template_kwargs=off)
        assert encoded.ids.tolist()[: len(prompt)] == prompt
        assert trained_texts(chat, encode(chat, answer("yes"))) == ["<think>\n\n</think>\n\nyes<|im_end|>"]


def test_D13_reasoning_marks_elsewhere_are_text():
    """Only those that an answer starts with are the template's; a question has none, nor has the rest of an answer.

    Mutation: jaxpost/data/chat/marking.py: `thought, rest = self.text(parts.thought), self.text(parts.rest)` -> `thought, rest = parts.thought, parts.rest`
    """  # noqa: E501
    chat = family("qwen3")
    marks = [chat.tokenizer.convert_tokens_to_ids(mark) for mark in ("<think>", "</think>")]
    bad = "x <think>a</think> y"
    for content in (bad, f"<think>\nhm\n</think>\n\n{bad}"):
        messages = [{"role": "user", "content": bad}, {"role": "assistant", "content": content}]
        encoded = encode(chat, messages)
        assert [encoded.ids.tolist().count(mark) for mark in marks] == [1, 1]
        assert trained_texts(chat, encoded)[0].endswith(f"</think>\n\n{bad}<|im_end|>") and encoded.spelled
    nested = encode(chat, answer("<think>\nthe mark <think> opens it\n</think>\n\nyes"))
    assert [nested.ids.tolist().count(mark) for mark in marks] == [1, 1]
    assert "the mark <think> opens it" in trained_texts(chat, nested)[0]
    beside = encode(chat, answer(bad, reasoning_content=f"hm {bad}"))
    assert [beside.ids.tolist().count(mark) for mark in marks] == [1, 1]


def test_reasoning_in_a_list_of_parts():
    template = toys.CHATML.replace("message['content'] +", "message['content'][0]['text'] +")
    template += "{# </think> #}"
    chat = Chat(tokenizer=families.tokenizer("qwen3", template))
    parts = [{"type": "text", "text": "<think>hm</think>yes <think>"}]
    encoded = encode(chat, [{"role": "user", "content": parts}, {"role": "assistant", "content": parts}])
    assert encoded.ids.tolist().count(chat.tokenizer.convert_tokens_to_ids("<think>")) == 1
