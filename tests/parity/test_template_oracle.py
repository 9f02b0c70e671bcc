"""Our templates of the families beside those that TRL ships, byte for byte, and their masks."""

import itertools
import json
import random
from pathlib import Path

import families
import pytest
import toy_tokenizer as toys

from jaxpost.core.errors import InputError
from jaxpost.data.chat.masks import encode_chats
from jaxpost.data.chat.prompt import encode_prompt
from jaxpost.data.chat.template import render
from jaxpost.data.chat.turns import Chat
from jaxpost.data.chat.twins import family_templates, proven, trial_rows
from jaxpost.data.rows import ChatRow, make_row

trl = pytest.importorskip("trl")

FOLDER = Path(trl.__file__).parent / "chat_templates"
SHIPPED = sorted(name for name in family_templates() if (FOLDER / f"{name}.jinja").exists())
TAGGED = [name for name in SHIPPED if (FOLDER / f"{name}_training.jinja").exists()]
WORDS = ("the ", "thing ", "and\n", "naïve ", "日本語", "😀 ", "\n\n", "12", "\t", "<think>", "</think>", "{{ x }}")
TOOLS = [
    {"type": "function", "function": {"name": "search", "description": "é <b>", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "add", "parameters": {"n": [1, 2.5, None, True]}, "return": "int"}},
]


def shipped(name, kind=""):
    return (FOLDER / f"{name}{kind}.jinja").read_text(encoding="utf-8")


def text(draw):
    return "".join(draw.choices(WORDS, k=draw.randrange(6)))


def message(draw):
    """Any message, sensible or not."""
    role = draw.choice(["system", "user", "user", "assistant", "assistant", "tool"])
    made = {"role": role, "content": text(draw)}
    if role == "assistant" and draw.random() < 0.4:
        made["reasoning_content"] = text(draw)
    if role == "assistant" and draw.random() < 0.4:
        arguments = draw.choice([{"q": text(draw)}, json.dumps({"q": 1}), {}])
        call = {"type": "function", "id": "abcdefghi", "function": {"name": "search", "arguments": arguments}}
        made["tool_calls"] = [call] * draw.randrange(3)
    return made | ({"tool_call_id": "abcdefghi"} if role == "tool" else {})


def rendered(tokenizer, template, row, prompt):
    try:
        return render(tokenizer, template, row, prompt=prompt).text
    except InputError:
        return None


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("seed", range(2))
def test_D1_our_template_renders_the_bytes_of_the_shipped_one(name, seed):
    """Trial conversations, and 150 of random messages, tools and arguments: the same bytes, and refused together.

    Mutation: jaxpost/data/chat/templates/qwen2_5.jinja: `message.role == 'user' or message.role == 'system' and not loop.first` -> `message.role == 'user'`
    """  # noqa: E501
    draw = random.Random(seed)
    tokenizer = families.tokenizer(name)
    rows = list(trial_rows())
    for _ in range(150):
        messages = [message(draw) for _ in range(draw.randrange(1, 6))]
        if draw.random() < 0.5:  # in the order that strict templates ask for
            roles = itertools.cycle(["user", "assistant"])
            messages = [{"role": next(roles), "content": text(draw)} for _ in messages]
        kwargs = draw.choice([{}, {"enable_thinking": False}, {"date_string": "now"}, {"tools_in_user_message": False}])
        tools = draw.choice([None, None, TOOLS])
        rows.append(ChatRow(source=0, where="x", messages=messages, tools=tools, template_kwargs=kwargs))
    taken = 0
    for row, prompt in itertools.product(rows, (False, True)):
        theirs = rendered(tokenizer, shipped(name), row, prompt)
        ours = rendered(tokenizer, family_templates()[name], row, prompt)
        assert ours == theirs, row
        taken += theirs is not None
    assert taken > 50


@pytest.mark.parametrize("name", SHIPPED)
def test_D16_the_shipped_template_is_proven_by_ours(name):
    """Mutation: jaxpost/data/chat/twins.py: `return bool(known) and all(` -> `return bool(known) and not all(`"""
    chat = Chat(tokenizer=families.tokenizer(name, shipped(name)))
    assert family_templates()[name] in proven(chat, shipped(name))


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("seed", range(2))
def test_D1_shipped_templates_train_the_answers(name, seed):
    """The shipped template, by whatever rung: ids are transformers', the mask is hand-made, or that of TRL's twin with
    tags where that renders the same (it keeps what Qwen3 and DeepSeek drop).

    Mutation: jaxpost/data/chat/spans.py: `            return place + len(header)` -> `            return place`
    """
    draw = random.Random(seed)
    words = [word for word in WORDS if "think" not in word]
    chat = Chat(tokenizer=families.tokenizer(name, shipped(name)))
    for _ in range(10):
        contents = ["".join(draw.choices(words, k=draw.randrange(5))) for _ in range(2 * draw.randrange(1, 4))]
        messages = toys.messages(*contents)
        (ours,) = encode_chats(chat, [make_row({"messages": messages}, source=1, where="x")])
        assert ours.ids.tolist() == chat.tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        pairs = zip(ours.ids.tolist(), ours.trained.tolist(), strict=True)
        groups = itertools.groupby(pairs, key=lambda pair: pair[1])
        said = [chat.tokenizer.decode([i for i, _ in group]) for on, group in groups if on]
        wanted = [families.answer_text(families.FAMILIES[name], c) for c in contents[1::2]]
        if name.startswith("qwen3") and "instruct" not in name:
            wanted[-1] = "<think>\n\n</think>\n\n" + contents[-1].lstrip("\n") + "<|im_end|>"
        assert [bare(each) for each in said] == [bare(each) for each in wanted]
        prompt = chat.tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)
        assert encode_prompt(chat, messages[:-1]) == prompt["input_ids"]


def bare(said):
    return "".join(said.replace("▁", " ").split())


@pytest.mark.parametrize("name", TAGGED)
def test_D1_masks_equal_those_of_tagged_templates(name):
    """TRL's tagged twins under transformers' own mask. Theirs holds more: what the generation prompt supplies and
    what follows a stop token; never less.

    Mutation: jaxpost/data/chat/spans.py: `            return place + len(header)` -> `            return place`
    """
    chat = Chat(tokenizer=families.tokenizer(name, shipped(name, "_training")))
    messages = toys.messages("the question", "the thing", "and?", "nothing")
    (ours,) = encode_chats(chat, [make_row({"messages": messages}, source=1, where="x")])
    options = dict(return_dict=True, return_assistant_tokens_mask=True)
    theirs = chat.tokenizer.apply_chat_template(messages, **options)
    assert ours.ids.tolist() == theirs["input_ids"]
    mask = [bool(bit) for bit in theirs["assistant_masks"]]
    more = {
        chat.tokenizer.convert_ids_to_tokens(index)
        for index, our, their in zip(ours.ids.tolist(), ours.trained.tolist(), mask, strict=True)
        if our != their
    }
    assert all(their or not our for our, their in zip(ours.trained.tolist(), mask, strict=True))
    assert more <= {"<｜Assistant｜>", "Ċ", "\n", "<|endoftext|>"}
