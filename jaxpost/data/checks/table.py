"""The table of checks of `jaxpost doctor`: what is looked for, how bad it is, and what to do about it."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that is looked for.

    Attributes:
      severity: an error means that training (or the evaluation) would be wrong: exit status 2.
      title: what was found, in words that read after a count of rows where it is about rows.
      advice: what to do; None where the detail is the line of an error, which says it.
      error_from: share of the rows it is about from which on a warning is an error; None for never.
    """

    severity: Severity
    title: str
    advice: str | None
    error_from: float | None = None


CHECKS: Mapping[str, Check] = {
    "rows.refused": Check(
        severity="error",
        title="cannot be read or trained as they are",
        advice=None,
    ),
    "rows.skipped": Check(
        severity="warning",
        title="cannot be read or trained as they are, and are skipped",
        advice=None,
        error_from=0.5,
    ),
    "data.mixture": Check(
        severity="error",
        title="the mixture of `--data` cannot be had",
        advice=None,
    ),
    "rows.none": Check(severity="error", title="no row is left to train on", advice="Look at what they fell to."),
    "rows.dropped": Check(
        severity="warning",
        title="dropped, nothing of them is trained",
        advice="Raise `--max-length`, or mend the rows.",
        error_from=0.5,
    ),
    "rows.empty": Check(
        severity="warning",
        title="with an empty answer or text: the model learns to stop at once",
        advice="Remove them.",
        error_from=0.5,
    ),
    "rows.duplicate": Check(
        severity="warning",
        title="equal to an earlier row, letter by letter",
        advice="Remove the copies, or say less by `--epochs`.",
        error_from=0.5,
    ),
    "rows.near-duplicate": Check(
        severity="warning",
        title="nearly equal to an earlier row (words of prompt and of answer)",
        advice="Look whether they teach anything new.",
    ),
    "rows.conflict": Check(
        severity="warning",
        title="answer a prompt in another way than an earlier row",
        advice="Keep one answer, unless several are meant.",
        error_from=0.5,
    ),
    "rows.control": Check(
        severity="warning",
        title="spell a control token in their text",
        advice="Look whether somebody tries to forge a turn; clean the text.",
    ),
    "rows.rendered": Check(
        severity="warning",
        title="are `text` that holds a chat's control tokens: the questions are trained like the answers",
        advice="Write them as `messages`.",
        error_from=0.5,
    ),
    "length.truncated": Check(
        severity="warning",
        title="longer than `--max-length`, so that the end is lost",
        advice="Raise `--max-length`, or `--overlong drop`.",
        error_from=0.5,
    ),
    "length.refused": Check(
        severity="error",
        title="longer than `--max-length`, and `--overlong error` refuses them",
        advice="Raise `--max-length`, or `--overlong truncate` or `drop`.",
    ),
    "bos.double": Check(
        severity="error",
        title="with a BOS too many",
        advice="Take it out of the template or the text: the tokenizer adds its own.",
    ),
    "bos.missing": Check(
        severity="warning",
        title="without the BOS that the tokenizer puts before a text",
        advice="Let the chat template begin with `{{ bos_token }}`.",
    ),
    "bos.template": Check(
        severity="note",
        title="the template writes a BOS and the tokenizer adds one as well",
        advice="jaxpost takes the template's alone; see that your server does not tokenise its text with both.",
    ),
    "end.untrained": Check(
        severity="warning",
        title="whose last answer ends in no trained stop token: the model does not learn to stop",
        advice="Let the template put a stop token after an answer, or set `eos_token` to the one it puts there.",
        error_from=1.0,
    ),
    "end.double": Check(
        severity="warning",
        title="that end in two stop tokens",
        advice="Take the stop token out of the text: it is added.",
    ),
    "stop.differs": Check(
        severity="warning",
        title="tokenizer, config.json and generation_config.json do not all stop at the token that ends answers",
        advice="Add it to `eos_token_id` where it is missing, or generation runs on.",
    ),
    "stop.pad": Check(
        severity="note",
        title="the pad token is the EOS",
        advice="No harm here: padding is masked by length, the EOS is trained. Other trainers may mask both.",
    ),
    "mask.prompt": Check(
        severity="error",
        title="whose prompt is trained as if it were the answer",
        advice="See where the template's {% generation %} tags stand.",
    ),
    "mask.answer": Check(
        severity="warning",
        title="whose answer is not among the trained tokens as it is written",
        advice="See what the template does to answers.",
        error_from=0.5,
    ),
    "mask.merged": Check(
        severity="warning",
        title="in which one token holds the end of the prompt and the start of the answer: generation sees others",
        advice="End prompts where a token ends.",
    ),
    "mask.little": Check(
        severity="warning",
        title="of the tokens hardly any are trained",
        advice="Shorten the prompts, or accept that steps teach little.",
    ),
    "vocabulary.ids": Check(
        severity="error",
        title="with token ids at or above the embedding's rows",
        advice="Use the tokenizer that the checkpoint came with.",
    ),
    "vocabulary.tokenizer": Check(
        severity="note",
        title="the tokenizer has more tokens than the embedding has rows",
        advice="Rows that use them are refused.",
    ),
    "template.missing": Check(
        severity="error",
        title="of messages, and the tokenizer has no chat template",
        advice="Put a chat_template.jinja into the model's folder, or write rows as `prompt` and `completion`.",
    ),
    "template.marker": Check(
        severity="warning",
        title="the template writes control tokens that the tokenizer does not have",
        advice="Is it the template of this model?",
    ),
    "template.prompt": Check(
        severity="warning",
        title="where the answer does not stand right after what the generation prompt supplies",
        advice="Generation would start from a context that was never trained; see `add_generation_prompt`.",
    ),
    "template.unshown": Check(
        severity="warning",
        title="of which the template leaves a message out: the model is trained without it",
        advice="See the template, or move what the message says into another.",
    ),
    "eval.leak": Check(
        severity="warning",
        title="of the evaluation are in the training data, letter by letter",
        advice="Remove them from one side.",
        error_from=0.01,
    ),
    "eval.near": Check(
        severity="warning",
        title="of the evaluation are nearly equal to a row of the training data",
        advice="Remove them from one side.",
    ),
    "eval.prompt": Check(
        severity="warning",
        title="of the evaluation ask a prompt of the training data, answered otherwise",
        advice="Split by prompt.",
    ),
    "capacity.adapter": Check(
        severity="warning",
        title="the trained weights cannot hold what the data tell",
        advice="Raise `--lora.rank`, widen `--lora.targets`, or use `--full`.",
    ),
    "rate.unusual": Check(
        severity="warning",
        title="the learning rate is not one of this kind of training",
        advice="An adapter takes about ten times the rate of full fine-tuning.",
    ),
    "steps.few": Check(severity="warning", title="the run takes very few steps", advice="Lower `--batch-size`."),
    "steps.warmup": Check(
        severity="warning", title="most of the run is warm-up", advice="Lower `--warmup-ratio` or raise `--epochs`."
    ),
    "packing.waste": Check(severity="note", title="most of each batch is padding", advice="Use `--packing on`."),
    "numerics.deviation": Check(
        severity="error",
        title="loss or gradient depends on how the batch is laid out",
        advice="This is a fault of the program or the device: report it.",
    ),
}
