"""Ten and more families' templates: ids of the shipped template, the assistant's turns marked, whatever the rung."""

import functools
import itertools
import json
import random
import re

import families
import pytest
import toy_tokenizer as toys
from families import FAMILIES

from jaxpost.core.errors import InputError
from jaxpost.data.chat.masks import encode_chats
from jaxpost.data.chat.prompt import encode_prompt, stop_tokens
from jaxpost.data.chat.template import render
from jaxpost.data.chat.turns import Chat
from jaxpost.data.chat.twins import family_templates, proven, trial_rows, twin_spans
from jaxpost.data.rows import make_row

TEXTS = ("the thing", "  the\n\n", "naïve 日本語 😀", "and\tthe ", "{{ bos_token }}", "a < b", "[x]", "{% endfor %}")
TOOL = {
    "type": "function",
    "function": {"name": "search", "description": "it", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "search", "arguments": {"q": "the thing", "n": 2}}}
RESULT = {"role": "tool", "content": "found", "tool_call_id": "abcdefghi"}
PREFIXES_FAIL = ("qwen3", "qwen3_thinking_2507", "deepseek_r1_distill", "phi3", "phi3_5")
PREFIXES_FAIL += ("phi4_mini", "mistral_v3", "mistral_nemo")
# Mistral Small: whatever the default system message, prefixes do.
TEKKEN = """{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}
{%- set turns = messages[1:] %}{%- else %}{%- set system = 'You are a model.' %}{%- set turns = messages %}{%- endif %}
{{- '[SYSTEM_PROMPT]' + system + '[/SYSTEM_PROMPT]' }}{%- for message in turns %}{%- if message['role'] == 'user' %}
{{- '[INST]' + message['content'] + '[/INST]' }}{%- elif message['role'] == 'assistant' %}
{{- message['content'] + eos_token }}{%- else %}{{- raise_exception('no such role') }}{%- endif %}{%- endfor %}"""


def chat_of(name, template=None):
    return Chat(tokenizer=families.tokenizer(name, template))


def encode(chat, messages, **columns):
    row = make_row({"messages": messages, **columns}, source=1, where="data.jsonl line 1")
    (encoded,) = encode_chats(chat, [row])
    return encoded


def trained_texts(chat, encoded):
    pairs = zip(encoded.ids.tolist(), encoded.trained.tolist(), strict=True)
    groups = itertools.groupby(pairs, key=lambda pair: pair[1])
    return [chat.tokenizer.decode([index for index, _ in group]) for trained, group in groups if trained]


def template_ids(chat, messages, prompt=False, **arguments):
    options = dict(add_generation_prompt=prompt, return_dict=True, **arguments)
    return chat.tokenizer.apply_chat_template(messages, **options)["input_ids"]


def conversation(name, *contents):
    return toys.messages(*contents, system="be brief" if FAMILIES[name].system else None)


def both(name):
    """The template as shipped, and ours with tags."""
    return chat_of(name), chat_of(name, family_templates()[name])


@pytest.mark.parametrize("name", FAMILIES)
def test_D1_D3_ids_of_the_template_and_the_answers_trained(name):
    """Two turns, both trained with their stop token, nothing else; one BOS, as the template writes it.

    Mutation: jaxpost/data/chat/masks.py: `    said = twin_spans(chat, row, template)` -> `    said = None`
    """
    family = FAMILIES[name]
    for chat in both(name):
        for answers in (("the thing", "nothing"), ("ab", ""), ("", "x y")):
            messages = conversation(name, "the question", answers[0], "and?", answers[1])
            encoded = encode(chat, messages)
            assert encoded.ids.tolist() == template_ids(chat, messages)
            thought = {"qwen3": "<think>\n\n</think>\n\n", "qwen3_thinking_2507": "\n\n</think>\n\n"}.get(name, "")
            wanted = [families.answer_text(family, answer) for answer in answers]
            got = [text.replace("▁", " ").strip() for text in trained_texts(chat, encoded)]
            assert got == [text.replace("▁", " ").strip() for text in (wanted[0], thought + wanted[1])]
            assert encoded.stopped and not encoded.spelled
            ids, bos = encoded.ids.tolist(), chat.tokenizer.bos_token_id
            if bos is not None and bos != chat.tokenizer.eos_token_id:
                assert ids.count(bos) == ("bos_token" in chat.tokenizer.chat_template) and ids[1:].count(bos) == 0


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("seed", range(2))
def test_D1_any_text_has_the_ids_and_the_mask_of_the_tags(name, seed):
    """Ids are `apply_chat_template`'s, and what is trained is the same by tags and without.

    Mutation: jaxpost/data/chat/spans.py: `            return place + len(header)` -> `            return place`
    """
    draw = random.Random(seed)
    shipped, tagged = both(name)
    for _ in range(12):
        contents = ["".join(draw.choices(TEXTS, k=draw.randrange(4))) for _ in range(2 * draw.randrange(1, 4))]
        messages = conversation(name, *contents)
        one, other = encode(shipped, messages), encode(tagged, messages)
        assert one.ids.tolist() == other.ids.tolist() == template_ids(shipped, messages)
        assert one.trained.tolist() == other.trained.tolist()
        question = messages[:-1]
        assert encode_prompt(shipped, question) == template_ids(shipped, question, prompt=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_D1_the_mask_is_that_of_transformers(name):
    """Where tags stand round the answer and its stop token, our mask is `return_assistant_tokens_mask`'s."""
    chat = chat_of(name, family_templates()[name])
    messages = conversation(name, "the question", "the thing", "and?", "nothing")
    options = dict(return_dict=True, return_assistant_tokens_mask=True)
    theirs = chat.tokenizer.apply_chat_template(messages, **options)
    ours = encode(chat, messages)
    assert ours.ids.tolist() == theirs["input_ids"]
    if name == "qwen3_thinking_2507":  # their tags hold the `<think>` that the generation prompt opens
        return
    assert ours.trained.tolist() == [bool(bit) for bit in theirs["assistant_masks"]]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_trial_conversation_that_the_template_takes_has_its_ids(name):
    chat, tagged = both(name)
    taken = 0
    for row in trial_rows():
        try:
            text = render(chat.tokenizer, chat.tokenizer.chat_template, row).text
        except InputError:
            continue
        taken += 1
        assert render(tagged.tokenizer, tagged.tokenizer.chat_template, row).text == text
        assert family_templates()[name] in proven(chat, chat.tokenizer.chat_template)
    assert taken >= 3


@pytest.mark.parametrize("system", [None, "be brief"])
def test_D1_a_template_of_no_twin_by_prefixes(system):
    chat = chat_of("mistral_nemo", TEKKEN)
    messages = toys.messages("q", "  the", "r", "", system=system)
    encoded = encode(chat, messages)
    assert encoded.ids.tolist() == template_ids(chat, messages)
    assert trained_texts(chat, encoded) == ["  the</s>", "</s>"]


def test_a_twin_is_used_only_where_it_renders_the_same():
    """Another word in the checkpoint's template, or in what a row alone brings out, and no twin is taken.

    Mutation: jaxpost/data/chat/twins.py: `if rendered.text == text and len` -> `if len`
    Mutation: jaxpost/data/chat/twins.py: `return bool(known) and all(` -> `return bool(known) and any(`
    """
    shipped = families.untagged(family_templates()["qwen3"])
    messages = toys.messages("q", "a", "r", "b")
    row = make_row({"messages": messages}, source=1, where="x")
    assert twin_spans(chat_of("qwen3"), row, shipped) is not None
    other = shipped.replace("\\n<tool_response>\\n", "\\n<tool_result>\\n")
    assert other != shipped and proven(chat_of("qwen3"), other) == []
    hidden = shipped.replace("{{- '<|im_end|>' -}}", "{{- ('!' if content == 'b' else '') + '<|im_end|>' -}}")
    chat = chat_of("qwen3", hidden)
    assert hidden != shipped and proven(chat, hidden)
    with pytest.raises(InputError, match="toy/qwen3.*message 1"):
        encode(chat, messages)
    assert encode(chat, toys.messages("q", "a", "r", "c")) is not None


@pytest.mark.parametrize("name", PREFIXES_FAIL)
def test_templates_that_need_a_twin_are_refused_without(name, monkeypatch):
    """The list of families for which prefixes do not do: the third rung is not idle."""
    monkeypatch.setattr("jaxpost.data.chat.twins.family_templates", dict)
    chat = chat_of(name)
    tools = [TOOL] if name.startswith("mistral") else None
    with pytest.raises(InputError, match=f"toy/{name}.*Add the tags"):
        encode(chat, toys.messages("a", "b", "c", "d"), tools=tools)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.tools])
@pytest.mark.parametrize("form", ["objects", "strings"])
def test_D1_D10_tools_and_their_calls(name, form):
    """Tools reach the template, calls are trained, results are not. Arguments that are JSON already are encoded once.

    Mutation: jaxpost/data/chat/prepare.py: `    return {**call, "arguments": arguments} if` -> `    return call if`
    """
    call = CALL
    if form == "strings":
        arguments = json.dumps(CALL["function"]["arguments"])
        call = {**CALL, "function": {**CALL["function"], "arguments": arguments}}
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    messages = [*said, RESULT, {"role": "assistant", "content": "that"}]
    if name == "llama3_1" and form == "objects":
        messages = [{"role": "system", "content": "brief"}, *messages]
    for chat in both(name):
        encoded = encode(chat, messages, tools=[TOOL])
        text = chat.tokenizer.decode(encoded.ids)
        spoken = trained_texts(chat, encoded)
        assert len(spoken) == 2 and "that" in spoken[1] and "found" not in "".join(spoken)
        assert re.search(r'\{"q": "the thing", "n": 2\}', spoken[0]) and '\\"' not in text
        assert '"name": "search"' in text and text.index('"search"') < text.index(spoken[0])
        objects = json.loads(json.dumps(messages).replace(json.dumps(json.dumps({"q": "the thing", "n": 2})), "{}"))
        objects[-3]["tool_calls"] = [CALL]
        assert encoded.ids.tolist() == template_ids(chat, objects, tools=[TOOL])
        prompt = encode_prompt(chat, messages[:-1], [TOOL])
        assert prompt == template_ids(chat, objects[:-1], prompt=True, tools=[TOOL])


@pytest.mark.parametrize("what", ["tools", "tool_calls"])
def test_D10_what_the_template_drops_is_refused(what):
    """Mutation: jaxpost/data/chat/prepare.py: `        _require(chat, ready, "tools", called(tool), text)` -> `        pass`
    Mutation: jaxpost/data/chat/prepare.py: `_require(chat, ready, f"messages[{index}].tool_calls", called(call), said)` -> `pass`
    """  # noqa: E501
    chat = chat_of("smollm2")
    messages = toys.messages("q", "a")
    columns = {"tools": [TOOL]} if what == "tools" else {}
    messages[1] |= {"tool_calls": [CALL]} if what == "tool_calls" else {}
    with pytest.raises(InputError, match=f"toy/smollm2.*{what}.*line 1") as caught:
        encode(chat, messages, **columns)
    assert "\n" not in str(caught.value)


def test_D10_what_an_answer_says_beside_its_calls_is_trained_or_refused():
    """Llama 3.1 leaves it out; Qwen 2.5 does not.

    Mutation: jaxpost/data/chat/prepare.py: `_require(chat, ready, f"messages[{index}].content", _answer(message), said)` -> `pass`
    """  # noqa: E501
    calls = {"role": "assistant", "content": "let me look", "tool_calls": [CALL]}
    messages = [{"role": "user", "content": "q"}, calls, RESULT, {"role": "assistant", "content": "that"}]
    spoken = chat_of("qwen2_5")
    assert "let me look" in trained_texts(spoken, encode(spoken, messages))[0]
    with pytest.raises(InputError, match=r"toy/llama3_1.*messages\[1\].content.*line 1"):
        encode(chat_of("llama3_1"), messages)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_list_of_text_parts_is_the_text_that_they_make(name):
    """For templates that take only strings as for those that take parts, in training and in generation.

    Mutation: jaxpost/data/chat/prepare.py: `isinstance(content, list) and turn.shows_strings:` -> `False:`
    """
    for chat in both(name):
        strings = conversation(name, "the thing", "naïve the", "and", "so")
        parts = [{**m, "content": [{"type": "text", "text": t} for t in halves(m["content"])]} for m in strings]
        whole, cut = encode(chat, strings), encode(chat, parts)
        assert cut.ids.tolist() == whole.ids.tolist() and cut.trained.tolist() == whole.trained.tolist()
        assert encode_prompt(chat, parts[:-1]) == encode_prompt(chat, strings[:-1])


def halves(text):
    return text[: len(text) // 2], text[len(text) // 2 :]


def test_D10_template_arguments_reach_the_template_in_training_and_in_generation():
    """Mutation: jaxpost/data/chat/prompt.py: `None if kwargs is None else dict(kwargs)` -> `None`"""
    chat = chat_of("llama3_2")
    kwargs = {"date_string": "1 Jan 2000"}
    encoded = encode(chat, toys.messages("q", "a"), chat_template_kwargs=kwargs)
    assert "1 Jan 2000" in chat.tokenizer.decode(encoded.ids)
    prompt = encode_prompt(chat, toys.messages("q"), template_kwargs=kwargs)
    assert encoded.ids.tolist()[: len(prompt)] == prompt


@pytest.mark.parametrize("name", FAMILIES)
def test_D15_training_and_generation_split_at_the_same_place(name):
    """What is not trained before an answer is what generation is given; the trained ids end with a stop token.

    Mutation: jaxpost/data/chat/prompt.py: `ready.row, prompt=True).text` -> `ready.row).text`
    """
    chat = chat_of(name)
    # Mistral's templates show the system message only where a question is the last of all.
    asks = toys.messages if name.startswith("mistral") else functools.partial(conversation, name)
    messages = asks("the question", "the thing")
    encoded = encode(chat, messages)
    start = int(encoded.trained.argmax())
    prompt = encode_prompt(chat, messages[:-1])
    if name not in ("deepseek_r1_distill", "qwen3_thinking_2507"):  # their prompts open a reasoning that is not there
        assert encoded.ids.tolist()[:start] == prompt
    last = [index for index, trained in zip(encoded.ids.tolist(), encoded.trained.tolist(), strict=True) if trained][-1]
    assert last in stop_tokens(chat)
    assert chat.tokenizer.convert_ids_to_tokens(last) == FAMILIES[name].stop


@pytest.mark.parametrize("name", ["phi3", "phi3_5", "phi4_mini"])
def test_D3_the_first_of_two_stop_tokens_ends_the_turn(name):
    """Phi writes its EOS after the last turn's end: generation has stopped before it.

    Mutation: jaxpost/data/chat/masks.py: `            stop = place` -> `            continue`
    """
    for chat in both(name):
        encoded = encode(chat, toys.messages("q", "the thing"))
        assert chat.tokenizer.convert_ids_to_tokens(encoded.ids.tolist())[-1] == "<|endoftext|>"
        assert trained_texts(chat, encoded)[0].endswith("thing<|end|>")


@pytest.mark.parametrize("name", ["phi3", "phi3_5"])
def test_D15_a_header_token_that_takes_the_blanks_behind_it_is_not_trained(name):
    """Mutation: jaxpost/data/chat/masks.py: `            start += 1` -> `            break`"""
    for chat in both(name):
        encoded = encode(chat, toys.messages("q", "  the thing"))
        assert trained_texts(chat, encoded)[0].strip() == "the thing<|end|>"


def test_rows_without_an_answer_have_no_labels():
    for name in FAMILIES:
        chat = chat_of(name)
        rows = ([{"role": "system", "content": "be brief"}], [], toys.messages("q"))
        assert [encode(chat, messages) for messages in rows] == [None] * 3


def test_the_templates_travel_with_the_package():
    assert len(family_templates()) >= 20
    assert set(FAMILIES) <= set(family_templates())
