"""`--chat-template`: read, checked, given to a tokenizer with the tokens that it needs."""

import families
import pytest
import toy_tokenizer as toys
from transformers import AutoTokenizer

from jaxpost.core.errors import InputError
from jaxpost.data.chat.given_template import give_template, read_template
from jaxpost.data.chat.masks import encode_chats
from jaxpost.data.chat.prompt import encode_prompt
from jaxpost.data.chat.turns import Chat
from jaxpost.data.rows import make_row


def trained(tokenizer):
    (encoded,) = encode_chats(
        Chat(tokenizer=tokenizer), [make_row({"messages": toys.messages("q", "a")}, source=1, where="x")]
    )
    return tokenizer.decode(encoded.ids[encoded.trained])


def test_chatml_adds_what_a_base_tokenizer_lacks():
    """Two new tokens, one id each; the EOS is the token that ends a turn.

    Mutation: jaxpost/data/chat/given_template.py: `        tokenizer.eos_token = max(own, key=len)` -> `        pass`
    """
    tokenizer = families.tokenizer("llama3", "")
    size = len(tokenizer)
    new = give_template(tokenizer, read_template("chatml"))
    assert new == ["<|im_start|>", "<|im_end|>"] and len(tokenizer) == size + 2
    assert tokenizer.convert_tokens_to_ids(new) == [size, size + 1] and tokenizer.eos_token == "<|im_end|>"
    assert trained(tokenizer) == "a<|im_end|>"
    assert encode_prompt(Chat(tokenizer=tokenizer), toys.messages("q")).count(size) == 2


def test_tokens_that_are_there_are_taken():
    tokenizer = families.tokenizer("smollm2", "")
    size = len(tokenizer)
    assert give_template(tokenizer, read_template("chatml")) == [] and len(tokenizer) == size


def test_the_tokenizer_s_files_hold_template_and_eos(tmp_path):
    tokenizer = families.tokenizer("llama3", "")
    give_template(tokenizer, read_template("chatml"))
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == read_template("chatml")
    assert again.eos_token == "<|im_end|>" and trained(again) == "a<|im_end|>"


def test_a_file_is_read_and_what_is_no_template_is_refused(tmp_path):
    """Mutation: jaxpost/data/chat/given_template.py: `    if "messages" not in text:` -> `    if False:`"""
    good = tmp_path / "own.jinja"
    good.write_text(toys.CHATML)
    assert read_template(str(good)) == toys.CHATML
    for name, content in {"syntax": b"{% if %}", "other": b"hello", "bytes": b"\xff\xfe"}.items():
        file = tmp_path / name
        file.write_bytes(content)
        with pytest.raises(InputError, match=name) as caught:
            read_template(str(file))
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="`--chat-template` must be chatml or a file.*missing"):
        read_template(str(tmp_path / "missing"))
    with pytest.raises(InputError, match="must render a question"):
        give_template(toys.toy(), "{{ messages.nothing.at.all }}")
