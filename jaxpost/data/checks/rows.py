"""What can be wrong with one tokenised row: BOS, stop tokens, the mask, the vocabulary, control tokens in its text."""

import json
import re
from typing import Any

import numpy as np

from jaxpost.core.errors import InputError
from jaxpost.data.chat.prompt import encode_prompt
from jaxpost.data.chat.template import folder_of, render, template_of
from jaxpost.data.chat.turns import turns_of
from jaxpost.data.checks.context import TRIAL, Context
from jaxpost.data.checks.duplicates import texts_of
from jaxpost.data.checks.findings import Finding, Observed, finding
from jaxpost.data.checks.mask import check_mask
from jaxpost.data.examples import Tokenised
from jaxpost.data.rows import ChatRow, CompletionRow, Row, TextRow

PROMPTS = 32  # conversations whose generation prompt is rendered and compared
_MARKER = re.compile(r"<\|[^<>|\s]{2,40}\|>|<(?:start|end)_of_turn>")


def check_row(context: Context, observed: Observed, row: Row, tokens: Tokenised) -> None:
    """Looks at one row, before it is cut."""
    for check in (_check_bos, _check_end, check_mask, _check_shown, _check_prompt, _check_ids):
        check(context, observed, row, tokens)


def check_text(context: Context, observed: Observed, row: Row) -> None:
    """Looks at the text of a row; it need not be one that can be tokenised."""
    prompt, answer = texts_of(row)
    observed.look("rows.empty", row.where, not answer.strip() and not (isinstance(row, ChatRow) and not turns_of(row)))
    text = answer if isinstance(row, TextRow) else json.dumps(_columns(row), ensure_ascii=False, default=str)
    for around in (context.tokenizer.bos_token, context.tokenizer.eos_token):
        if isinstance(row, TextRow) and around:  # a text may bring its own
            text = text.removeprefix(around).removesuffix(around)
    hit = context.controls.search(text)
    if isinstance(row, CompletionRow) and context.tokenizer.eos_token == (hit and hit[0]):
        hit = context.controls.search(text.replace(context.tokenizer.eos_token, "", 1))
    check = "rows.rendered" if isinstance(row, TextRow) else "rows.control"
    observed.look(check, row.where, hit is not None, f"first {hit[0]!r}" if hit else "")


def _columns(row: Row) -> Any:
    return [row.prompt, row.completion] if isinstance(row, CompletionRow) else row.messages  # type: ignore


def _check_bos(context: Context, observed: Observed, row: Row, tokens: Tokenised) -> None:
    bos, ids = context.tokenizer.bos_token_id, tokens.ids
    if bos is None or not len(ids):
        return
    # A template may begin every turn with the BOS (SmolLM2): of a conversation only a doubled start is wrong.
    # Where it ends texts as well (GPT-2), a plain row has a second one by right.
    later = ids[1:2] if isinstance(row, ChatRow) or bos in context.ends else ids[1:]
    observed.look("bos.double", row.where, bool(ids[0] == bos and (later == bos).any()))
    if isinstance(row, ChatRow) and context.plain.added[0]:
        observed.look("bos.missing", row.where, bool(ids[0] != bos))


def _check_end(context: Context, observed: Observed, row: Row, tokens: Tokenised) -> None:
    if len(tokens.ids) > context.max_length or not tokens.trained.any():
        return
    last = int(np.flatnonzero(tokens.trained)[-1])
    ends = np.isin(tokens.ids[[max(0, last - 1), last]], list(context.ends))
    got = context.tokenizer.convert_ids_to_tokens(int(tokens.ids[last]))
    observed.look("end.untrained", row.where, not ends[1], f"the last trained token is {got!r}")
    observed.look("end.double", row.where, bool(ends.all() and last > 0))
    end = int(tokens.ids[last])
    silent = [name for name, ids in context.stops.items() if ids and end not in ids]
    observed.look("stop.differs", row.where, bool(ends[1] and silent), f"{got!r} is not in {', '.join(silent)}")


def _check_shown(context: Context, observed: Observed, row: Row, tokens: Tokenised) -> None:
    if isinstance(row, ChatRow):
        observed.look("template.unshown", row.where, tokens.unshown)


def _check_prompt(context: Context, observed: Observed, row: Row, tokens: Tokenised) -> None:
    """Whether generation would start where the training of the row's first trained answer starts."""
    if not isinstance(row, ChatRow) or observed.seen["template.prompt"] >= PROMPTS or not tokens.trained.any():
        return
    template = template_of(context.tokenizer, row)
    try:
        text = render(context.tokenizer, template, row, end=turns_of(row)[0], prompt=True).text
    except InputError:  # a template that refuses a conversation without an answer cannot be asked for one either
        return observed.look("template.prompt", row.where, True, "the template cannot render a prompt alone")
    prompt = encode_prompt(
        context.chat, row.messages[: turns_of(row)[0]], row.tools, row.template_kwargs, date=row.date
    )
    start = int(np.flatnonzero(tokens.trained)[0])
    fits = start == len(prompt) and tokens.ids[:start].tolist() == prompt
    observed.look("template.prompt", row.where, not fits, f"the prompt ends in {text[-24:]!r}")


def _check_ids(context: Context, observed: Observed, row: Row, tokens: Tokenised) -> None:
    top = int(tokens.ids[: context.max_length].max(initial=0))
    got = f"{top} ({context.tokenizer.convert_ids_to_tokens(top)!r}) of {context.vocab_size} rows"
    observed.look("vocabulary.ids", row.where, top >= context.vocab_size, got)


def tokenizer_findings(context: Context, chats: int) -> list[Finding]:
    """What is wrong with tokenizer and template themselves; `chats` is how many rows need a template."""
    tokenizer, found = context.tokenizer, []
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
        found.append(finding("stop.pad", detail=repr(tokenizer.pad_token)))
    if len(tokenizer) > context.vocab_size:
        found.append(finding("vocabulary.tokenizer", detail=f"{len(tokenizer)} against {context.vocab_size}"))
    if not chats:
        return found
    if context.template is None:
        return [*found, finding("template.missing", count=chats, total=chats, detail=folder_of(tokenizer))]
    known = {token.content for token in tokenizer.added_tokens_decoder.values()}
    if strange := sorted(set(_MARKER.findall(_trial_text(context))) - known):
        found.append(finding("template.marker", detail=", ".join(strange[:4])))
    bos = context.plain.added[0]
    if bos and _trial_text(context).startswith(bos):
        found.append(finding("bos.template", detail=repr(bos)))
    return found


def _trial_text(context: Context) -> str:
    try:
        return render(context.tokenizer, context.template or "", TRIAL, prompt=False).text
    except InputError:
        return ""
