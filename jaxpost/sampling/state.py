"""What a batch of rows carries from token to token, and the pure functions that the sampler compiles."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpost.models.cache import Cache, decode, grow, prefill, take_rows
from jaxpost.models.config import ModelConfig
from jaxpost.models.decoder import Params, logits_of
from jaxpost.sampling.draw import draw, step_keys


class Rules(NamedTuple):
    """How rows are sampled; arguments of the programs, so that no value of them compiles anything.

    Attributes:
      temperature: [B] float32, 0 is greedy.   limits: [B] int32, tokens a row may get.
      stop, allowed: [V] bool, ids that end a row; ids that may be drawn.
    """

    temperature: Any
    limits: Any
    stop: Any
    allowed: Any


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["cache", "tokens", "logps", "slot", "starts", "counts", "done", "keys"],
    meta_fields=[],
)
@dataclass(frozen=True, kw_only=True)
class State:
    """Rows under way. All of a row's new tokens lie in neighbouring slots and end at `slot`, unless it is done.

    Attributes:
      cache: of S slots, filled below `slot`.
      tokens, logps: [B, S] by slot; new tokens only.
      slot: of the newest token.   starts: [B], first slot of each row's prompt.   counts: [B], new tokens.
      done: [B]: the row has drawn a stop id, or all it may.   keys: [B].
    """

    # Any: jax rebuilds pytrees with placeholders, shardings or shapes as leaves.
    cache: Any
    tokens: Any
    logps: Any
    slot: Any
    starts: Any
    counts: Any
    done: Any
    keys: Any


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is static about the programs.

    Attributes:
      config: the model's.   bucket: in slots, sizes of caches are multiples of it.   dtype: of activations and cache.
    """

    config: ModelConfig
    bucket: int
    dtype: Any


def begin_prompts(
    shape: Shape, places: int | None, params: Params, tokens: Int[Array, " P T"], starts: Int[Array, " P"]
):
    """Logits after each distinct prompt [P, V], and the cache of T slots; `places`: see `prefill`."""
    h, cache = prefill(shape.config, params, tokens, starts, bucket=shape.bucket, places=places, dtype=shape.dtype)
    return logits_of(shape.config, params, h), cache


def begin_rows(
    shape: Shape,
    size: int,
    logits: Float[Array, " P V"],
    cache: Cache,
    starts: Int[Array, " P"],
    length: Int[Array, ""],
    prompts: Int[Array, " B"],
    active: Array,
    keys: Array,
    rules: Rules,
) -> State:
    """Rows with their first token, row b a completion of prompt `prompts[b]`, and a cache of `size` slots.

    `length` is the prompts' T, where the new tokens begin; rows that are not `active` get none.
    """
    rows = take_rows(cache, prompts, logits.shape[0])
    empty = jnp.zeros((prompts.shape[0], size), jnp.int32)
    state = State(
        cache=grow(shape.config, rows, size, shape.bucket),
        tokens=empty,
        logps=empty.astype(jnp.float32),
        slot=length - 1,
        starts=starts[prompts],
        counts=jnp.zeros_like(prompts),
        done=~active,
        keys=keys,
    )
    return _append(state, logits[prompts], rules)


def advance(shape: Shape, params: Params, state: State, rules: Rules, until: Int[Array, ""]) -> State:
    """Tokens for all rows until slot `until`, the cache's end, or all rows are done."""
    last = jnp.minimum(until, state.tokens.shape[1] - 1)

    def step(state: State) -> State:
        token = jax.lax.dynamic_index_in_dim(state.tokens, state.slot, 1, keepdims=False)
        h, cache = decode(shape.config, params, state.cache, token, state.slot, state.starts, dtype=shape.dtype)
        return _append(_with(state, cache=cache), logits_of(shape.config, params, h), rules)

    return jax.lax.while_loop(lambda state: (state.slot < last) & ~jnp.all(state.done), step, state)


def enlarge(shape: Shape, size: int, state: State) -> State:
    """The state with room for `size` slots."""
    more = [(0, 0), (0, size - state.tokens.shape[1])]
    return _with(
        state,
        cache=grow(shape.config, state.cache, size, shape.bucket),
        tokens=jnp.pad(state.tokens, more),
        logps=jnp.pad(state.logps, more),
    )


def _append(state: State, logits: Float[Array, " B V"], rules: Rules) -> State:
    """Draws each row's next token into the next slot; a row that is done gets nothing more."""
    token, logp = draw(logits, step_keys(state.keys, state.counts), rules.temperature, rules.allowed)
    slot, live = state.slot + 1, ~state.done
    put = lambda table, column: jax.lax.dynamic_update_index_in_dim(table, jnp.where(live, column, 0), slot, 1)  # noqa: E731
    counts = state.counts + live
    return _with(
        state,
        tokens=put(state.tokens, token),
        logps=put(state.logps, logp),
        slot=slot,
        counts=counts,
        done=state.done | rules.stop[token] | (counts >= rules.limits),
    )


def _with(state: State, **fields: Any) -> State:
    return State(**{**state.__dict__, **fields})
