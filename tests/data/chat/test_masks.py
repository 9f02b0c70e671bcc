"""Which tokens of a conversation are trained: by generation tags, by prefixes, or not at all."""

import itertools
import random

import numpy as np
import pytest
import toy_tokenizer as toys

from jaxpost.core.errors import InputError
from jaxpost.data.chat.masks import encode_chats
from jaxpost.data.chat.template import has_generation_tags
from jaxpost.data.chat.turns import Chat
from jaxpost.data.encode import encode_rows
from jaxpost.data.rows import ChatRow, make_row

LADDER = {  # every way to mark the same ChatML turns
    "prefixes": toys.CHATML,
    "tags": toys.TAGGED,
    "tags round the newline": toys.TAGGED_WITH_NEWLINE,
    "tags round the content": toys.TAGGED_CONTENT_ONLY,
    "tags round the header": toys.TAGGED_WITH_HEADER,
}
TEXTS = ("the thing", "  the\n\n", "", "naïve 日本語 😀👍🏽", "and\tthe ", "e\u0301 combining", "\n", "ing the thin")


def chat_row(*contents, where="data.jsonl line 1", **columns):
    return make_row({"messages": toys.messages(*contents), **columns}, source=1, where=where)


def encode(tokenizer, *rows, **options):
    encoded = encode_chats(Chat(tokenizer=tokenizer, **options), rows)
    return encoded[0] if len(rows) == 1 else encoded


def trained_texts(tokenizer, encoded):
    """The text of each stretch of trained tokens."""
    pairs = zip(encoded.ids.tolist(), encoded.trained.tolist(), strict=True)
    groups = itertools.groupby(pairs, key=lambda pair: pair[1])
    return [tokenizer.decode([index for index, _ in group]) for trained, group in groups if trained]


def template_ids(tokenizer, row):
    return tokenizer.apply_chat_template(row.messages, tools=row.tools, return_dict=True)["input_ids"]


@pytest.mark.parametrize("kind", LADDER)
def test_D3_stop_tokens_are_trained_and_headers_are_not(kind):
    """Answer and stop token of every turn, whatever the tags enclose; no header, no user or system token, no newline.

    Mutation: jaxpost/data/chat/masks.py: `            return stop + 1` -> `            return end`
    """
    tokenizer = toys.toy(LADDER[kind])
    row = make_row(
        {"messages": toys.messages("the question", "the thing", "and?", "nothing", system="be brief")},
        source=1,
        where="data.jsonl line 1",
    )
    encoded = encode(tokenizer, row)
    assert encoded.ids.tolist() == template_ids(tokenizer, row)
    assert trained_texts(tokenizer, encoded) == ["the thing<|im_end|>", "nothing<|im_end|>"]
    assert encoded.stopped


@pytest.mark.parametrize("template", [toys.CHATML, toys.TAGGED_WITH_NEWLINE])
def test_D3_what_follows_the_stop_token_is_not_trained(template):
    """The newline after the stop token is never generated.

    Mutation: jaxpost/data/chat/masks.py: `stop, stops) + 1` -> `stop, stops) + 9`
    """
    tokenizer = toys.toy(template)
    assert trained_texts(tokenizer, encode(tokenizer, chat_row("a", "b"))) == ["b<|im_end|>"]


@pytest.mark.parametrize(("template", "stop"), [(toys.LLAMA3, "<|eot_id|>"), (toys.GEMMA, "<end_of_turn>")])
@pytest.mark.parametrize("trim_offsets", [False, True])
def test_D3_the_end_of_turn_token_need_not_be_the_eos(template, stop, trim_offsets):
    """Llama 3 and Gemma end a turn with another token than the tokenizer's EOS; one BOS, none added, no EOS added.

    Mutation: jaxpost/data/chat/turns.py: `self.stop_ids.union(ends, eos)` -> `self.stop_ids.union(eos)`
    """
    tokenizer = toys.toy(
        template, eos="<|endoftext|>", adds_bos=True, adds_eos=True, trim_offsets=trim_offsets, regex="llama3"
    )
    row = chat_row("the\n\nquestion", "the\n\nthing", "and", "that")
    encoded = encode(tokenizer, row)
    assert encoded.ids.tolist() == template_ids(tokenizer, row)
    assert encoded.ids.tolist().count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in encoded.ids.tolist()
    assert trained_texts(tokenizer, encoded) == [f"the\n\nthing{stop}", f"that{stop}"]
    assert encoded.stopped


def test_D3_a_turn_that_no_stop_token_ends_is_reported():
    tokenizer = toys.toy("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}")
    assert not encode(tokenizer, chat_row("a", "b")).stopped


def test_H28_every_stop_id_ends_a_turn():
    """Stop ids of generation_config.json count as the tokenizer's EOS does: what follows them in a turn is not trained.

    Mutation: jaxpost/data/chat/turns.py: `self.stop_ids.union(ends, eos)` -> `frozenset(ends + eos)`
    """
    call = "{% set stop = '<|eot_id|>' if message['content'].startswith('call') else '<|im_end|>' %}"
    template = toys.CHATML.replace("%}{{ '<|im_start|>'", "%}" + call + "{{ '<|im_start|>'", 1)
    tokenizer = toys.toy(template.replace("+ '<|im_end|>\\n'", "+ stop + '\\n'"))
    row = chat_row("a", "call", "b", "c")
    stop = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert trained_texts(tokenizer, encode(tokenizer, row, stop_ids=frozenset([stop])))[0] == "call<|eot_id|>"
    assert trained_texts(tokenizer, encode(tokenizer, row))[0] == "call<|eot_id|>\n"  # nothing says that it stops


@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize("regex", ["", "gpt2", "llama3"])
@pytest.mark.parametrize(("template", "stop"), [(toys.TAGGED, "<|im_end|>"), (toys.TAGGED_BARE, "")])
@pytest.mark.parametrize("seed", range(3))
def test_D3_tags_and_any_text(trim_offsets, regex, template, stop, seed):
    """Spans of characters become tokens exactly: letters of several bytes, blanks at the edges, trimmed offsets, texts
    that a normalizer shortens.

    Mutation: jaxpost/data/chat/turns.py: `tokenizer.backend_tokenizer.post_processor = None` -> `pass`
    """
    draw = random.Random(seed)
    tokenizer = toys.toy(template, trim_offsets=trim_offsets, regex=regex)
    for _ in range(40):
        contents = ["".join(draw.choices(TEXTS, k=draw.randrange(4))) or "a" for _ in range(2 * draw.randrange(1, 4))]
        row = chat_row(*contents)
        encoded = encode(tokenizer, row)
        assert encoded.ids.tolist() == template_ids(tokenizer, row)
        normal = tokenizer.backend_tokenizer.normalizer
        answers = [normal.normalize_str(text) if normal else text for text in contents[1::2]]
        for text, answer in zip(trained_texts(tokenizer, encoded), answers, strict=True):
            # "\n\n" may be one token of header and answer: then it is trained, and its first half shows.
            merged = f"\n{answer}{stop}" if answer.startswith("\n") else ""
            assert text in (f"{answer}{stop}", merged)


@pytest.mark.parametrize("seed", range(3))
def test_D3_prefixes_and_tags_agree(seed):
    draw = random.Random(seed)
    tagged, plain = (toys.toy(template, regex="gpt2") for template in (toys.TAGGED, toys.CHATML))
    for _ in range(30):
        contents = ["".join(draw.choices(TEXTS, k=draw.randrange(4))).strip() for _ in range(6)]
        one, other = (encode(tokenizer, chat_row(*contents)) for tokenizer in (tagged, plain))
        assert one.ids.tolist() == other.ids.tolist() and one.trained.tolist() == other.trained.tolist()


def test_D4_pad_equal_to_eos_leaves_the_eos_trained():
    """The mask asks where a token stands, never whether its id is the padding's.

    Mutation: jaxpost/data/chat/masks.py: `[:1] = False` -> `[np.array(ids) == chat.tokenizer.pad_token_id] = False`
    """
    for template in LADDER.values():
        tokenizer = toys.toy(template, pad="<|im_end|>")
        encoded = encode(tokenizer, chat_row("a", "b"))
        assert encoded.trained[encoded.ids == tokenizer.eos_token_id].tolist() == [False, True]


def test_D5_a_template_that_cannot_be_marked_is_an_error_that_names_it():
    """Neither tags nor exact prefixes: an error with folder, row and way out; never a mask of ones or of zeros.

    Mutation: jaxpost/data/chat/spans.py: `len(before) <= len(after)` -> `True`
    """
    backwards = "{% for m in messages | reverse %}{{ m['role'] + ':' + m['content'] }}{% endfor %}"
    no_header = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}aaaa{% endif %}"
    for template, contents in ((backwards, ("a", "b")), (no_header, ("a", "", "aaaa", ""))):
        with pytest.raises(InputError, match=r"toy/folder.*line 1, message 1.*Add the tags") as caught:
            encode(toys.toy(template), chat_row(*contents))
        assert "\n" not in str(caught.value)


def test_D5_no_template_is_an_error_that_names_the_folder():
    with pytest.raises(InputError, match=r"toy/folder.*line 1"):
        encode(toys.toy(), chat_row("a", "b"))


def test_D5_tags_that_miss_the_assistant_are_an_error():
    """No token trained in a row with an answer is an error, not a row of zeros.

    Mutation: jaxpost/data/chat/masks.py: `if not trained.any():` -> `if not len(trained):`
    """
    with pytest.raises(InputError, match=r"line 1.*toy/folder"):
        encode(toys.toy(toys.TAGGED_USER), chat_row("a", "b"))


def test_D5_tags_inside_a_macro_are_an_error():
    """There the renderer reports the place of other text: it would train it.

    Mutation: jaxpost/data/chat/template.py: `collected or collects or recursive` -> `collected or recursive`
    """
    with pytest.raises(InputError, match="macros.*toy/folder"):
        encode(toys.toy(toys.TAGGED_IN_MACRO), chat_row("a", "b"))


def test_tags_are_found_as_jinja_finds_them():
    assert has_generation_tags("{%- generation -%}{{ a }}{%- endgeneration -%}", "x")
    assert not has_generation_tags("{# {% generation %} #}{{ a }}{% raw %}{% generation %}{% endraw %}", "x")
    with pytest.raises(InputError, match="line 1"):
        has_generation_tags("{% if %}", "x")
    recursive = "{% for m in messages recursive %}{% generation %}{{ m }}{% endgeneration %}{% endfor %}"
    for block in ("set x", "filter upper", "call m()"):
        name = block.split()[0]
        with pytest.raises(InputError, match="macros"):
            has_generation_tags(f"{{% {block} %}}{{% generation %}}a{{% endgeneration %}}{{% end{name} %}}", "x")
    with pytest.raises(InputError, match="macros"):
        has_generation_tags(recursive, "x")


@pytest.mark.parametrize("kind", LADDER)
def test_D6_every_assistant_turn_is_trained_and_last_only_trains_one(kind):
    """Two turns are trained; the words of an answer that stood in a question before are not taken for it.

    Mutation: jaxpost/data/encode.py: `max([row.trained_from, *turns])` -> `row.trained_from`
    """
    tokenizer = toys.toy(LADDER[kind])
    row = chat_row("the thing", "the thing", "the thing", "nothing")
    encoded = encode(tokenizer, row)
    assert trained_texts(tokenizer, encoded) == ["the thing<|im_end|>", "nothing<|im_end|>"]
    assert np.flatnonzero(encoded.trained)[0] > encoded.ids.tolist().index(tokenizer.eos_token_id)
    last = encode_rows(tokenizer, [row], max_length=256, overlong="error", vocab_size=999, last_only=True).examples[0]
    assert last.ids.tolist() == encoded.ids.tolist()
    assert trained_texts(tokenizer, last) == ["nothing<|im_end|>"]


@pytest.mark.parametrize("kind", LADDER)
def test_prompt_and_completion_messages_train_the_completion(kind):
    """Mutation: jaxpost/data/chat/spans.py: `rendered.spans[_untrained(chat, row, template, len(rendered.spans)) :]` -> `rendered.spans`"""  # noqa: E501
    tokenizer = toys.toy(LADDER[kind])
    turns = toys.messages("a", "the", "b", "thing", "c", "and")
    row = make_row({"prompt": turns[:3], "completion": turns[3:]}, source=1, where="data.jsonl line 1")
    encoded = encode(tokenizer, row)
    assert encoded.ids.tolist() == template_ids(tokenizer, row)
    assert trained_texts(tokenizer, encoded) == ["thing<|im_end|>", "and<|im_end|>"]


def test_a_row_without_assistant_turn_has_no_labels():
    tokenizer = toys.toy(toys.CHATML)
    row = make_row({"prompt": toys.messages("a", "b"), "completion": toys.messages("c")}, source=1, where="x")
    assert encode(tokenizer, chat_row("a"), row, chat_row(), chat_row("a", "b"))[:3] == [None] * 3


@pytest.mark.parametrize("think", ["<think>\nhm\n</think>\nyes", "yes"])
def test_D15_what_the_generation_prompt_supplies_is_not_trained(think):
    """The prompt opens `<think>`: an answer with reasoning starts after it, in training as in generation.

    Mutation: jaxpost/data/chat/spans.py: `return place + len(header)` -> `return max(start, place)`
    """
    tokenizer = toys.toy(toys.OPENED)
    encoded = encode(tokenizer, chat_row("q", think))
    assert trained_texts(tokenizer, encoded) == [think.removeprefix("<think>\n") + "<|im_end|>"]


def test_D16_a_template_that_drops_earlier_reasoning_is_never_trained_by_guessed_spans():
    """Its prefixes are not those of the whole: refused where an earlier turn is to be trained, right for the last one.

    Mutation: jaxpost/data/chat/spans.py: `text.startswith(after)` -> `True`
    """
    tokenizer = toys.toy(toys.THINKING)
    row = chat_row("q", "<think>hm</think>yes", "r", "<think>oh</think>no", where="data.jsonl line 7")
    with pytest.raises(InputError, match=r"toy/folder.*line 7, message 1"):
        encode(tokenizer, row)
    last = make_row({"prompt": row.messages[:3], "completion": row.messages[3:]}, source=1, where="x")
    encoded = encode(tokenizer, last)
    assert trained_texts(tokenizer, encoded) == ["<think>oh</think>no<|im_end|>"]
    assert "hm" not in tokenizer.decode(encoded.ids)


@pytest.mark.parametrize("template", [toys.CHATML, toys.TAGGED])
def test_D15_a_token_over_the_start_of_a_turn_is_trained_and_said(template):
    """The header's newline and the answer's make one token, which no generation prompt supplies.

    Mutation: jaxpost/data/chat/masks.py: `merged = merged or (start < end and` -> `merged = merged or (start > end and`
    """
    tokenizer = toys.toy(template)
    merged, clear = encode(tokenizer, chat_row("q", "\nyes"), chat_row("q", "yes"))
    assert trained_texts(tokenizer, merged) == ["\n\nyes<|im_end|>"]
    assert merged.merged and not clear.merged


def test_a_tokenizer_that_puts_a_blank_before_a_text_works_by_whole_prefixes():
    template = toys.LLAMA3.replace("<|im_start|>", "").replace("<|im_end|>", "").replace("\\n\\n", " ")
    tokenizer = toys.toy(template, blank_before=True)
    row = chat_row("the question", "the thing", "and", "that")
    encoded = encode(tokenizer, row)
    assert encoded.ids.tolist() == template_ids(tokenizer, row)
    assert trained_texts(tokenizer, encoded) == ["the thing<|eot_id|>", "that<|eot_id|>"]


def test_a_row_that_the_template_refuses_is_named():
    tokenizer = toys.toy(toys.GEMMA)
    row = make_row({"messages": toys.messages("a", "b", system="s")}, source=1, where="data.jsonl line 9")
    with pytest.raises(InputError, match="toy/folder.*line 9.*no system role"):
        encode(tokenizer, row)


def test_a_template_that_drops_strings_is_refused():
    """Mutation: jaxpost/data/chat/template.py: `shows_strings=False` -> `shows_strings=True`"""
    tokenizer = toys.toy(toys.PARTS)
    with pytest.raises(InputError, match="toy/folder.*strings.*line 1"):
        encode(tokenizer, chat_row("a", "b"))
    parts = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in toys.messages("a", "b")]
    assert trained_texts(tokenizer, encode(tokenizer, make_row({"messages": parts}, source=1, where="x"))) == [
        "b<|im_end|>"
    ]


def test_tools_and_template_arguments_reach_the_template():
    """Mutation: jaxpost/data/chat/template.py: `            tools=row.tools,` -> `            tools=None,`"""
    template = toys.TOOLS + "{{ suffix }}"
    tool = {"type": "function", "function": {"name": "search"}}
    tokenizer = toys.toy(template)
    row = chat_row("a", "b", tools=[tool], chat_template_kwargs={"suffix": "!"})
    text = tokenizer.decode(encode(tokenizer, row).ids)
    assert '"name": "search"' in text and text.endswith("!")
    assert "tools" not in tokenizer.decode(encode(tokenizer, chat_row("a", "b", tools=[])).ids)


def test_D14_empty_tools_write_no_boilerplate():
    """Mutation: jaxpost/data/messages.py: `value == []` -> `value == {}`"""
    tokenizer = toys.toy(toys.TOOLS)
    rows = [chat_row("a", "b", **columns) for columns in ({}, {"tools": []}, {"tools": None}, {"tools": "[]"})]
    assert len({tuple(encoded.ids.tolist()) for encoded in encode(tokenizer, *rows)}) == 1


def test_a_second_template_serves_rows_with_tools():
    tokenizer = toys.toy()
    tokenizer.chat_template = {"default": toys.CHATML, "tool_use": toys.TOOLS}
    tool = {"type": "function", "function": {"name": "search"}}
    without, with_tools = encode(tokenizer, chat_row("a", "b"), chat_row("a", "b", tools=[tool]))
    assert len(with_tools.ids) > len(without.ids)
    assert trained_texts(tokenizer, with_tools) == trained_texts(tokenizer, without) == ["b<|im_end|>"]


def test_slow_tokenizers_are_refused_where_offsets_are_needed():
    class Slow:
        is_fast, name_or_path, special_tokens_map, chat_template = False, "slow/folder", {}, toys.TAGGED

        def get_chat_template(self, tools):
            return self.chat_template

    with pytest.raises(InputError, match="slow/folder"):
        encode(Slow(), ChatRow(source=1, where="x", messages=toys.messages("a", "b")))
