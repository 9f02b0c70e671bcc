"""`generate`: prompts as text or messages -> completions as text, with a model's tokenizer."""

import datetime
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool

from jaxpost.core.errors import InputError
from jaxpost.data.chat.template import folder_of
from jaxpost.data.prompts import EncodedPrompt, Prompt, PromptEncoder, as_prompt
from jaxpost.hub.model import Model
from jaxpost.models.config import ModelConfig
from jaxpost.sampling.draw import row_keys
from jaxpost.sampling.sampler import Sampler

OVERLONG_PROMPT = ("error", "keep-end")


class Completion(NamedTuple):
    """What a model said.

    Attributes:
      text: without special tokens.
      tokens, logps: ids and their log-probabilities in nats; the stop token that ended it, if one did, is the last.
      finish_reason: "stop", or "length" where the limit cut it.
    """

    text: str
    tokens: list[int]
    logps: list[float]
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Lengths in tokens.

    Attributes:
      max_new_tokens: of a completion.
      max_length: of prompt and completion together; None is what the model was made for, if its config.json tells.
      overlong_prompt: of a prompt that leaves no room, "error", or "keep-end": its beginning is cut off. Raw text keeps
        the special tokens that the tokenizer puts before it (BOS), as transformers has it. Of messages the rendered
        text is cut where the room ends: BOS, the system's turn and the first turns go, and a turn may lose its head.
    """

    max_new_tokens: int = 256
    max_length: int | None = None
    overlong_prompt: str = "error"

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"`max_new_tokens` must be >= 1; got {self.max_new_tokens}. Ask for a token or more.")
        if self.overlong_prompt not in OVERLONG_PROMPT:
            rule = " or ".join(OVERLONG_PROMPT)
            raise InputError(f"`overlong_prompt` must be {rule}; got {self.overlong_prompt!r}. Choose one.")
        if self.max_length is not None and self.max_length <= self.max_new_tokens:
            raise InputError(
                f"`max_length` must leave room for a prompt beside max_new_tokens = {self.max_new_tokens}; got "
                f"{self.max_length}. Raise it, or lower max_new_tokens."
            )


def generate(
    model: Model,
    prompts: Iterable[Any],
    *,
    n: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    params: Any = None,
    batch_size: int = 16,
    max_length: int | None = None,
    overlong_prompt: str = "error",
    date: datetime.date | None = None,
) -> list[Completion]:
    """Completions of each prompt, `n` of the first, then `n` of the second, and so on.

    What a prompt gets depends on the seed and the prompt alone (and on the day, where the template writes it), whatever
    else is asked; a prompt that stands in the list twice gets further completions of its own, as with a larger `n`.

    Args:
      prompts: each a string (raw text, with the tokenizer's special tokens) or a list of messages (chat template).
      temperature: 0 takes the likeliest token at each place. Log-probabilities are of softmax(logits / temperature),
        at 0 of softmax(logits).
      params: the tree to sample from, adapters bound or not; None takes `model.params`.
      batch_size: completions under way at a time.
      max_new_tokens, max_length, overlong_prompt: see `Limits`.
      date: the day for chat templates that write one; None is today.

    Raises:
      InputError: a prompt that is empty, too long, or of ids that the model has not; messages without a template; a
        `date` that is no day.
    """
    asked = [] if isinstance(prompts, str | dict) else list(prompts)  # once: it may be a generator
    if isinstance(prompts, str | dict) or any(isinstance(prompt, dict) for prompt in asked):
        raise InputError("`prompts` must be a list of prompts; got a single one. Write [prompt].")
    limits = Limits(max_new_tokens=max_new_tokens, max_length=max_length, overlong_prompt=overlong_prompt)
    checked = [as_prompt(prompt, f"prompt {i}") for i, prompt in enumerate(asked)]
    generator = Generator(model, params=params, date=date)
    return generator.complete(checked, n=n, limits=limits, temperature=temperature, seed=seed, batch_size=batch_size)


class Generator:
    """A model ready to sample from: encoder, programs, weights in decoding's form."""

    def __init__(
        self,
        model: Model,
        *,
        params: Any = None,
        date: datetime.date | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        """`params`, `date`: see `generate`; `sampler`: None takes the one that models of this configuration share."""
        self.tokenizer, self.config = model.tokenizer, model.config
        self.max_positions: int | None = model.hf_config.get("max_position_embeddings")
        self.added_before = added_before(model.tokenizer)
        self.encoder = PromptEncoder(model.tokenizer, model.stop_ids, date)
        self.sampler = sampler or _shared(model.config)
        prepared = self.sampler.prepare(model.params if params is None else params)
        self.weights = prepared._replace(cuts={})  # the stacks themselves may go
        self.allowed = known_ids(model.tokenizer, model.config.vocab_size)

    def complete(
        self,
        prompts: Sequence[Prompt],
        *,
        limits: Limits,
        n: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 16,
    ) -> list[Completion]:
        """See `generate`."""
        for name, value in (("n", n), ("batch_size", batch_size)):
            if value < 1:
                raise InputError(f"`{name}` must be >= 1; got {value}. Give a positive number.")
        if not 0 <= temperature < float("inf"):
            raise InputError(f"`temperature` must be a number >= 0; got {temperature}. 0 is greedy.")
        encoded = [self.encode(prompt, limits) for prompt in prompts]
        found: dict[int, Completion] = {}
        for job in jobs(encoded, n, batch_size):
            drawn = self.sampler.sample(
                self.weights,
                job.prompts,
                [row.prompt for row in job.rows],
                row_keys(seed, [job.prompts[row.prompt] for row in job.rows], [row.sample for row in job.rows]),
                limits=[self.room(len(job.prompts[row.prompt]), limits) for row in job.rows],
                temperature=temperature,
                stop_ids=job.stop_ids,
                allowed=self.allowed,
                batch_size=min(batch_size, n * len(prompts)),
                num_prompts=job.num_prompts,
            )
            for at, row in enumerate(job.rows):
                length, stopped = int(drawn.lengths[at]), bool(drawn.stopped[at])
                found[row.index] = self.completion(drawn.tokens[at], drawn.logps[at], length, stopped)
        return [found[index] for index in range(len(found))]

    def stream(
        self, prompt: Prompt, *, limits: Limits, temperature: float = 0.0, seed: int = 0, every: int = 4
    ) -> Iterator[Completion]:
        """The completion of one prompt as far as it has come, each `every` tokens; the last is that of `complete`."""
        encoded = self.encode(prompt, limits)
        prompts = self.sampler.prefill(self.weights, [encoded.ids])
        rules = self.sampler.rules(
            1,
            limits=self.room(len(encoded.ids), limits),
            temperature=temperature,
            stop_ids=encoded.stop_ids,
            allowed=self.allowed,
        )
        keys = row_keys(seed, [encoded.ids], [0])
        for state in self.sampler.stream(self.weights, prompts, [0], keys, rules, every=every):
            tokens, logps = (np.asarray(x)[0, prompts.length :] for x in (state.tokens, state.logps))
            count = int(state.counts[0])
            yield self.completion(tokens, logps, count, int(tokens[count - 1]) in encoded.stop_ids)

    def encode(self, prompt: Prompt, limits: Limits) -> EncodedPrompt:
        """A prompt's ids, within the limits and the vocabulary."""
        found = self.encoder.encode(prompt)
        most, length = self._prompt_limit(limits), len(found.ids)
        if most is not None and length > most:
            if limits.overlong_prompt == "error":
                raise InputError(
                    f"a prompt must have at most {most} tokens here; got {length} at {prompt.where}. Raise max_length, "
                    "shorten the prompt, or set overlong_prompt to keep-end."
                )
            whole = isinstance(prompt.content, str) and most > self.added_before
            kept = found.ids[: self.added_before] if whole else ()
            found = EncodedPrompt(ids=kept + found.ids[len(kept) - most :], stop_ids=found.stop_ids)
        if (top := max(found.ids)) >= self.config.vocab_size:
            raise InputError(
                f"token ids must be below the embedding's {self.config.vocab_size} rows; got {top} at {prompt.where}. "
                f"The tokenizer at {folder_of(self.tokenizer)} has more tokens than the checkpoint."
            )
        return found

    def _prompt_limit(self, limits: Limits) -> int | None:
        if limits.max_length is not None:
            return limits.max_length - limits.max_new_tokens
        return None if self.max_positions is None else self.max_positions - 1

    def room(self, length: int, limits: Limits) -> int:
        """New tokens that fit after a prompt of `length`."""
        most = limits.max_length or self.max_positions
        return limits.max_new_tokens if most is None else min(limits.max_new_tokens, most - length)

    def completion(self, tokens: np.ndarray, logps: np.ndarray, length: int, stopped: bool) -> Completion:
        """One row of `Samples`."""
        ids = tokens[:length].tolist()
        return Completion(
            self.text(ids[:-1] if stopped else ids), ids, logps[:length].tolist(), "stop" if stopped else "length"
        )

    def text(self, ids: Sequence[int]) -> str:
        """What ids read as, special tokens left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def added_before(tokenizer: Any) -> int:
    """How many special tokens (BOS) the tokenizer puts before a text by itself."""
    whole, bare = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (True, False))
    return next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)


def known_ids(tokenizer: Any, vocab_size: int) -> Bool[np.ndarray, " V"]:
    """The ids that the tokenizer has: a checkpoint's table may be padded with rows that mean nothing."""
    ids = np.fromiter(tokenizer.get_vocab().values(), np.int64)
    known = np.zeros(vocab_size, bool)
    known[ids[ids < vocab_size]] = True
    return known


class Row(NamedTuple):
    """A completion to draw: its place in the result, its prompt in the job, which of that prompt's it is."""

    index: int
    prompt: int
    sample: int


class Job(NamedTuple):
    """Distinct prompts that are run together, of `num_prompts` in the program, and their rows."""

    prompts: list[tuple[int, ...]]
    num_prompts: int
    rows: list[Row]
    stop_ids: frozenset[int]


def jobs(encoded: Sequence[EncodedPrompt], n: int, batch_size: int) -> Iterator[Job]:
    """Every distinct prompt in one job, about `batch_size` rows a job, prompts of like length together.

    >>> a, b = (EncodedPrompt(ids=ids, stop_ids=frozenset()) for ids in [(5, 6), (7,)])
    >>> [job.rows for job in jobs([a, b, a], 1, 1)]
    [[Row(index=0, prompt=0, sample=0), Row(index=2, prompt=0, sample=1)], [Row(index=1, prompt=0, sample=0)]]
    """
    rows: dict[EncodedPrompt, list[int]] = {}
    for i, prompt in enumerate(encoded):
        rows.setdefault(prompt, []).extend(range(i * n, i * n + n))
    # Longest first: what needs most memory is run at once, or fails at once.
    ordered = sorted(rows, key=lambda prompt: (sorted(prompt.stop_ids), -len(prompt.ids)))
    for stop_ids, group in itertools.groupby(ordered, key=lambda prompt: prompt.stop_ids):
        chosen = list(group)
        size = min(len(chosen), max(1, batch_size // n))
        for start in range(0, len(chosen), size):
            part = chosen[start : start + size]
            each = [Row(i, at, sample) for at, prompt in enumerate(part) for sample, i in enumerate(rows[prompt])]
            yield Job([prompt.ids for prompt in part], size, each, stop_ids)


@functools.lru_cache(maxsize=4)
def _shared(config: ModelConfig) -> Sampler:
    return Sampler(config)
