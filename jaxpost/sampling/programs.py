"""What a batch of samples will run, before it runs: functions and shapes, for the memory plan."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxpost.models.cache import unstack
from jaxpost.models.decoder import Params
from jaxpost.sampling.sampler import Sampler, ladder


def programs(
    sampler: Sampler, params: Params, *, num_prompts: int, num_rows: int, prompt_length: int, max_new_tokens: int
) -> dict[str, tuple[Any, tuple]]:
    """By name a jitted function and the shapes of its arguments, as `train.programs.Program` takes them.

    Args:
      params: the tree that `Sampler.prepare` takes, or its shapes. The program `unstack` is the copy made there.
      num_prompts, num_rows: distinct prompts and rows of a batch.   prompt_length: of the longest, in tokens.
    """
    separate = functools.partial(unstack, sampler.config)
    stacked = _abstract(params)
    weights = jax.eval_shape(separate, stacked)
    length = ladder(prompt_length, sampler.bucket)
    size = ladder(length + 1, sampler.bucket)
    prompts = (None, weights, _ints(num_prompts, length), _ints(num_prompts))  # on all slots: at most
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), num_rows))
    rules = _abstract(sampler.rules(num_rows, limits=1, temperature=0.0, stop_ids=()))
    live = jax.ShapeDtypeStruct((num_rows,), jnp.bool_)
    logits, cache = jax.eval_shape(functools.partial(sampler.run_prefill, None), *prompts[1:])
    begin = (logits, cache, _ints(num_prompts), _ints(), _ints(num_rows), live, keys, rules)
    state = jax.eval_shape(functools.partial(sampler.run_begin, size), *begin)
    found = {
        "unstack": (jax.jit(separate), (stacked,)),
        "prefill": (sampler.run_prefill, prompts),
        "begin": (sampler.run_begin, (size, *begin)),
    }
    while True:
        found[f"advance {size}"] = (sampler.run_advance, (weights, state, rules, _ints()))
        if size >= length + max_new_tokens:
            return found
        larger = ladder(size + 1, sampler.bucket)
        found[f"enlarge {size}"] = (sampler.run_enlarge, (larger, state))
        state, size = jax.eval_shape(functools.partial(sampler.run_enlarge, larger), state), larger


def _ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _abstract(tree: Any) -> Any:
    return jax.eval_shape(lambda x: x, tree)
