"""Chat templates: text exactly as transformers renders it, and what a template says about its own turns."""

import dataclasses
import datetime
import functools
import json
import logging
import os.path
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes

from jaxpost.core.errors import InputError
from jaxpost.data.rows import ChatRow

SENTINEL = "jaxpost"
log = logging.getLogger(__name__)
_CLOCK = re.compile(r"""strftime_now\(\s*(?P<quote>['"])(?P<format>[^'"\\]*)(?P=quote)\s*\)""")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rendered:
    """The text of a conversation, and the character spans of its `{% generation %}` blocks (empty if not asked for)."""

    text: str
    spans: Sequence[tuple[int, int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TurnMarks:
    """What stands around an assistant's answer: `supplied`, the texts that a generation prompt may have put before it
    (longest first), and `tail`, the text that the template puts after it. `shows_strings`: a content that is a string
    gets into the text; templates of vision models take only lists of parts, and drop strings without a word.
    `quotes_arguments`: arguments of a tool call that are JSON already are encoded a second time."""

    supplied: tuple[str, ...] = ()
    tail: str = ""
    shows_strings: bool = True
    quotes_arguments: bool = False

    @property
    def opening(self) -> str:
        """The part of the generation prompt that opens the answer's reasoning; empty if it opens none."""
        _, opened, after = self.supplied[0].rpartition("<think>") if self.supplied else ("", "", "")
        return opened + after if opened and "</think>" not in after else ""


def folder_of(tokenizer: Any) -> str:
    """Where a tokenizer and its template came from, for messages."""
    return getattr(tokenizer, "name_or_path", "") or "the tokenizer"


def template_of(tokenizer: Any, row: ChatRow) -> str:
    """The template for a row: a tokenizer may have a second one for rows with tools.

    Raises:
      InputError: the tokenizer has no template.
    """
    try:
        return tokenizer.get_chat_template(tools=row.tools)
    except ValueError:
        raise InputError(
            f"rows of messages need a chat template; got a tokenizer without one at {folder_of(tokenizer)} (row at "
            f"{row.where}). Give `--chat-template chatml` or a file, or write the rows as `prompt` and `completion`."
        ) from None


def render(
    tokenizer: Any, template: str, row: ChatRow, *, end: int | None = None, prompt: bool = False, spans: bool = False
) -> Rendered:
    """The text of `row.messages[:end]`, followed by the generation prompt if `prompt`.

    Equals `tokenizer.apply_chat_template(..., tokenize=False)`, which drops keys that are null and gives templates the
    special tokens by name. It does not report the spans of generation tags, so its renderer is called here. A template
    that asks for the day (`strftime_now`, as Llama 3.2) is told `row.date`.

    Raises:
      InputError: the template refuses the row.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{key: value for key, value in m.items() if value is not None} for m in row.messages[:end]]
    dated = template if row.date is None else _at_day(template, row.date)
    try:
        rendered: Any = render_jinja_template(
            [messages],
            tools=row.tools,
            chat_template=dated,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=spans,
            **{**tokenizer.special_tokens_map, **row.template_kwargs},
        )
    except Exception as error:  # a template is foreign code: whatever it raises is about this row
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"the chat template of {folder_of(tokenizer)} must accept the row at {row.where}; got {reason}. "
            "Fix the row or the template."
        ) from None
    (text,), found = rendered
    return Rendered(text=text, spans=found[0] if spans else ())


def has_generation_tags(template: str, folder: str) -> bool:
    """Whether a template marks what the assistant says with `{% generation %}`.

    Raises:
      InputError: it does so where the marked text is collected before it is written (a macro, a set, filter or call
        block): the renderer counts written characters, and would report spans of other text.
    """
    places = set(_tag_places(template, folder))
    if True in places:
        raise InputError(
            "`{% generation %}` must stand outside of macros and of set, filter and call blocks, where its position in "
            f"the text cannot be known; got it inside one in the chat template of {folder}. Move the tag."
        )
    return bool(places)


@functools.lru_cache(maxsize=64)
def _at_day(template: str, date: datetime.date) -> str:
    """The template with another clock: the renderer takes no function, so the calls of its own are written out."""
    told = _CLOCK.sub(lambda call: json.dumps(date.strftime(call["format"]), ensure_ascii=False), template)
    if "strftime_now(" in told:
        log.warning(
            "the chat template asks for the day by a call of strftime_now that is not of one text: there it writes "
            "today, so a run that goes on another day has other data."
        )
    return told


def asks_for_the_day(tokenizer: Any) -> bool:
    """Whether a template of the tokenizer writes the day: then what it makes of a row depends on it."""
    return "strftime_now" in str(tokenizer.chat_template)


@functools.lru_cache(maxsize=16)
def _tag_places(template: str, folder: str) -> tuple[bool, ...]:
    """For each generation tag of the template: is it inside something that is collected before it is written?"""
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    try:
        return tuple(_walk(environment.parse(template), False))
    except jinja2.TemplateSyntaxError as error:
        raise InputError(
            f"the chat template of {folder} must be valid Jinja; got {error.message} in line {error.lineno}. Fix it."
        ) from None


class _GenerationTag(jinja2.ext.Extension):
    """Parses the tag, for a look at where it stands; never rendered."""

    tags = {"generation"}

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("marked"), [], [], body).set_lineno(line)


def _walk(node: jinja2.nodes.Node, collected: bool):
    n = jinja2.nodes
    tag = isinstance(node, n.CallBlock) and isinstance(node.call.node, n.ExtensionAttribute)
    if tag:
        yield collected
    collects = isinstance(node, n.Macro | n.CallBlock | n.AssignBlock | n.FilterBlock)
    recursive = isinstance(node, n.For) and node.recursive
    for child in node.iter_child_nodes():
        yield from _walk(child, collected or collects or recursive)


def turn_marks(tokenizer: Any, template: str, kwargs: Mapping[str, Any]) -> TurnMarks:
    """Learn from a conversation of two words what a template puts before and after an assistant's answer.

    A template that cannot render such a conversation gives no marks, and takes no strings if it takes lists of parts.
    """
    row = _trial({"content": SENTINEL}, kwargs)
    try:
        asked = render(tokenizer, template, row, end=1).text
        opened = render(tokenizer, template, row, end=1, prompt=True).text
        whole = render(tokenizer, template, row).text
    except InputError:
        return TurnMarks(shows_strings=not _takes_parts(tokenizer, template, kwargs))
    prompt = opened.removeprefix(asked) if opened.startswith(asked) else ""
    before, found, tail = whole.rpartition(SENTINEL)
    quotes = _quotes_arguments(tokenizer, template, kwargs)
    if not found:
        return TurnMarks(supplied=(prompt,) if prompt else (), shows_strings=False, quotes_arguments=quotes)
    # A template may open more than its finished turns show, a `<think>` say: then the part that both have.
    header = os.path.commonprefix([prompt, before.removeprefix(asked)])
    supplied = tuple(dict.fromkeys(filter(None, (prompt, header))))
    return TurnMarks(supplied=supplied, tail=tail, quotes_arguments=quotes)


def _trial(answer: Mapping[str, Any], kwargs: Mapping[str, Any], question: Any = "question") -> ChatRow:
    messages = [{"role": "user", "content": question}, {"role": "assistant", **answer}]
    return ChatRow(source=0, where="a trial conversation", messages=messages, template_kwargs=kwargs)


def _takes_parts(tokenizer: Any, template: str, kwargs: Mapping[str, Any]) -> bool:
    question, answer = ([{"type": "text", "text": text}] for text in ("question", SENTINEL))
    try:
        return SENTINEL in render(tokenizer, template, _trial({"content": answer}, kwargs, question)).text
    except InputError:
        return False


def _quotes_arguments(tokenizer: Any, template: str, kwargs: Mapping[str, Any]) -> bool:
    if "tool_calls" not in template:
        return False
    arguments = f'{{"{SENTINEL}": 1}}'
    call = {"type": "function", "id": "abcdefghi", "function": {"name": "name", "arguments": arguments}}
    try:
        text = render(tokenizer, template, _trial({"content": "", "tool_calls": [call]}, kwargs)).text
    except InputError:
        return False
    return json.dumps(arguments) in text
