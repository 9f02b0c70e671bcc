"""The sampler: prompts in, tokens and log-probabilities out, each program compiled once per shape.

    sampler = Sampler(config)
    weights = sampler.prepare(params)                       # params as training has them, adapters bound or not
    samples = sampler.sample(weights, prompts, rows, keys, limits=64, temperature=1.0, stop_ids={2})

Programs: `prefill` for each (prompts, prompt slots, places), `begin` for each (prompts, rows, sizes), and for each
(rows, cache size) `advance`, which draws tokens until the cache is full or every row is done. Sizes are those of
`ladder` and `places_for`.
"""

import functools
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32

from jaxpost.models.cache import unstack
from jaxpost.models.config import ModelConfig
from jaxpost.models.decoder import Params
from jaxpost.sampling.state import Rules, Shape, State, advance, begin_prompts, begin_rows, enlarge
from jaxpost.sharding import batch_shards

BUCKET = 64  # slots; finer ones compile more, coarser ones read more of an empty cache (measured on CPU)
STEP = 1024  # tokens; what fewer cost is less than a further program
FINE = 8  # buckets up to which sizes go bucket by bucket


def ladder(count: int, bucket: int = BUCKET) -> int:
    """The size of cache for `count` slots: bucket by bucket up to `FINE` of them, then a quarter more each time.

    >>> [ladder(n) for n in (1, 64, 65, 500, 513, 2000)]
    [64, 64, 128, 512, 640, 2112]
    """
    size = bucket
    while size < count:
        size += max(bucket, size // 4 // bucket * bucket) if size >= FINE * bucket else bucket
    return size


def places_for(tokens: int, slots: int) -> int | None:
    """What prefill runs its layers on where so many of the slots hold a token: steps of an eighth of the slots, so
    that few programs are compiled, and of `STEP` at least; None, all slots, where that spares none or a mesh cuts rows.

    >>> [places_for(n, 9600) for n in (5700, 6001, 9000)], places_for(20, 64)
    ([6000, 7200, None], None)
    """
    step = max(slots // 8, STEP)
    places = -(-tokens // step) * step
    return places if places < slots and batch_shards() == 1 else None


class Samples(NamedTuple):
    """New tokens of each row, in numpy.

    Attributes:
      tokens, logps: [B, N]; beyond a row's length 0. A stop id is a token like the others, with its log-probability.
      lengths: [B], in tokens.   stopped: [B], whether a stop id ended the row (else the limit).
      iterations: passes of decoding, one less than the longest row of each batch has tokens.
    """

    tokens: Int32[np.ndarray, " B N"]
    logps: Float32[np.ndarray, " B N"]
    lengths: Int32[np.ndarray, " B"]
    stopped: Bool[np.ndarray, " B"]
    iterations: int


class Weights(NamedTuple):
    """Parameters in decoding's form, and the cut of each stack that they were made of."""

    params: Params
    cuts: Mapping[int, tuple[Array, tuple[Array, ...]]]  # id of a stack -> the stack and its layers


@dataclass(frozen=True)
class Prompts:
    """Prompts after prefill: logits [P, V], cache of `length` slots, each prompt's first slot [P]."""

    logits: Any
    cache: Any
    starts: Any
    length: int


class Sampler:
    """Compiled programs for one model configuration; weights are arguments, so an optimizer step changes nothing here.

    Attributes:
      run_prefill, run_begin, run_advance, run_enlarge: the jitted functions of `state.py`; `programs` has their shapes.
      traces: how often each program was traced, by name and shape; 1 everywhere, whatever was sampled.
    """

    def __init__(self, config: ModelConfig, *, dtype: Any = None, bucket: int = BUCKET) -> None:
        """`dtype`: of activations and cache, None takes the embedding's; `bucket`: see `ladder`."""
        self.config, self.bucket = config, bucket
        self.traces: Counter[tuple] = Counter()
        shape = Shape(config=config, bucket=bucket, dtype=dtype)
        self.run_prefill = jax.jit(
            self._counted(
                "prefill", functools.partial(begin_prompts, shape), lambda n, p, tokens, s: (*tokens.shape, n)
            ),
            static_argnums=0,
        )
        self.run_begin = jax.jit(
            self._counted("begin", functools.partial(begin_rows, shape), lambda size, *a: (size, *a[4].shape)),
            static_argnums=0,
        )
        self.run_advance = jax.jit(
            self._counted("advance", functools.partial(advance, shape), lambda p, state, *a: state.tokens.shape),
            donate_argnums=1,
        )
        self.run_enlarge = jax.jit(
            self._counted("enlarge", functools.partial(enlarge, shape), lambda size, s: (size, *s.tokens.shape)),
            static_argnums=0,
        )

    def _counted(self, name: str, function: Callable, key: Callable[..., tuple]) -> Callable:
        def run(*arguments: Any) -> Any:
            self.traces[(name, *key(*arguments))] += 1  # runs while tracing only
            return function(*arguments)

        return run

    def prepare(self, params: Params, before: Weights | None = None) -> Weights:
        """The per-layer form of `params`, a copy of the stacks.

        Stacks that `before` was made of too (a frozen base, while adapters are trained) are not copied again.
        """
        cuts: dict[int, tuple[Array, tuple[Array, ...]]] = {}

        def split(stack: Array) -> tuple[Array, ...]:
            known = before.cuts.get(id(stack)) if before is not None else None
            cuts[id(stack)] = known or (stack, tuple(stack[i] for i in range(stack.shape[0])))
            return cuts[id(stack)][1]

        return Weights(unstack(self.config, params, split), cuts)

    def prefill(self, weights: Weights, prompts: Sequence[Sequence[int]], num_prompts: int | None = None) -> Prompts:
        """Runs each prompt once; none may be empty. `num_prompts`: of the program, None is as many as there are."""
        length = ladder(max(map(len, prompts)), self.bucket)
        prompts = [*prompts, *[(0,)] * ((num_prompts or 0) - len(prompts))]
        tokens = np.zeros((len(prompts), length), np.int32)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[length - len(prompt) :] = prompt
        starts = jnp.asarray([length - len(prompt) for prompt in prompts], jnp.int32)
        places = places_for(sum(map(len, prompts)), tokens.size)
        logits, cache = self.run_prefill(places, weights.params, jnp.asarray(tokens), starts)
        return Prompts(logits, cache, starts, length)

    def stream(
        self,
        weights: Weights,
        prompts: Prompts,
        rows: Sequence[int],
        keys: Array,
        rules: Rules,
        *,
        active: Sequence[bool] | None = None,
        every: int | None = None,
    ) -> Iterator[State]:
        """States under way, after every dispatch; the last has all rows done. Each ends with the next one's start.

        Args:
          rows: which prompt each row continues.   keys: [B], see `draw.row_keys`.
          active: rows that are not are there to fill the batch.   every: tokens a dispatch, None as many as fit.
        """
        size = ladder(prompts.length + 1, self.bucket)
        chosen = jnp.asarray(rows, jnp.int32)
        live = jnp.ones(len(rows), bool) if active is None else jnp.asarray(active)
        length = jnp.int32(prompts.length)
        state = self.run_begin(size, prompts.logits, prompts.cache, prompts.starts, length, chosen, live, keys, rules)
        yield state
        while not np.asarray(state.done).all():
            slot = int(state.slot)
            if slot == size - 1:
                size = ladder(size + 1, self.bucket)
                state = self.run_enlarge(size, state)
            until = jnp.int32(size if every is None else slot + every)
            state = self.run_advance(weights.params, state, rules, until)
            yield state

    def rules(
        self,
        count: int,
        *,
        limits: int | Sequence[int],
        temperature: float | Sequence[float],
        stop_ids: Collection[int],
        allowed: Bool[np.ndarray, " V"] | None = None,
    ) -> Rules:
        """`Rules` of `count` rows; ids of `stop_ids` beyond the vocabulary cannot be drawn and are left out."""
        size = self.config.vocab_size
        stop = np.zeros(size, bool)
        stop[[i for i in stop_ids if i < size]] = True
        drawable = np.ones(size, bool) if allowed is None else allowed
        each = [jnp.broadcast_to(jnp.asarray(x, t), (count,)) for x, t in ((temperature, "float32"), (limits, "int32"))]
        return Rules(*each, stop=jnp.asarray(stop), allowed=jnp.asarray(drawable))

    def sample(
        self,
        weights: Weights,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[int],
        keys: Array,
        *,
        limits: int | Sequence[int],
        temperature: float | Sequence[float],
        stop_ids: Collection[int],
        allowed: Bool[np.ndarray, " V"] | None = None,
        batch_size: int | None = None,
        num_prompts: int | None = None,
    ) -> Samples:
        """Completions of `prompts[rows[b]]` for each b.

        Args:
          weights: of `prepare`.   prompts: distinct prompts, as token ids.   keys: [B] PRNG keys.
          limits: new tokens, 1 or more, of all rows or of each.   temperature: likewise, 0 is greedy.
          stop_ids: ids that end a row.   allowed: [V], ids that may be drawn; None is all.
          batch_size: rows at a time, the last batch filled up; None is all at once.   num_prompts: see `prefill`.
        """
        prefilled = self.prefill(weights, prompts, num_prompts)
        rules = self.rules(len(rows), limits=limits, temperature=temperature, stop_ids=stop_ids, allowed=allowed)
        parts = []
        for start in range(0, len(rows), batch_size or len(rows)):
            # The last batch is filled up with its first row, which is not run.
            at = np.arange(start, start + (batch_size or len(rows)))
            active = at < len(rows)
            at = np.where(active, at, start)
            each = rules._replace(temperature=rules.temperature[at], limits=rules.limits[at])
            chosen = np.asarray(rows)[at].tolist()
            parts.append(self._run(weights, prefilled, chosen, keys[at], each, active))
        return _joined(parts, np.asarray(rules.stop))

    def _run(self, weights: Weights, prompts: Prompts, rows: list[int], keys: Array, rules: Rules, active: np.ndarray):
        (state,) = deque(self.stream(weights, prompts, rows, keys, rules, active=active.tolist()), maxlen=1)
        tokens, logps = (np.asarray(x)[active, prompts.length :] for x in (state.tokens, state.logps))
        return tokens, logps, np.asarray(state.counts)[active], int(state.slot) - prompts.length


def _joined(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, int]], stop: Bool[np.ndarray, " V"]) -> Samples:
    """The batches one after another, cut to the longest row."""
    longest = max(int(counts.max()) for _, _, counts, _ in parts)

    def whole(index: int) -> np.ndarray:
        cut = [np.asarray(part[index])[:, :longest] for part in parts]
        return np.concatenate([np.pad(x, [(0, 0), (0, longest - x.shape[1])]) for x in cut])

    tokens, lengths = whole(0), np.concatenate([counts for _, _, counts, _ in parts])
    last = np.take_along_axis(tokens, lengths[:, None] - 1, axis=1)[:, 0]
    return Samples(tokens, whole(1), lengths, stop[last], sum(iterations for *_, iterations in parts))
