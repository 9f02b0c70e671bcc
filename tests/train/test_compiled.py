"""Claims about the compiled step, read off the compiler's own memory analysis and text."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest
from decoders import GLOBAL, LOCAL, PLAIN, gemma, llama

from jaxpost import adapters
from jaxpost.adapters.targets import matrices
from jaxpost.models.attention import BLOCK
from jaxpost.models.config import abstract_params
from jaxpost.models.vocab import CHUNK_ELEMENTS
from jaxpost.objectives import adapter_policy, full_policy, sft
from jaxpost.train import adamw, init_state, make_step
from jaxpost.train.programs import Program

# A head that outweighs all else, and numbers that are found again in the text: no other array has these sizes.
VOCAB, HIDDEN = 4099, 22
CONFIG = llama([PLAIN], vocab_size=VOCAB, hidden_size=HIDDEN, num_heads=2, head_dim=8)
CHUNK = CHUNK_ELEMENTS // VOCAB


def program(config, length, kind="lora", rows=1):
    """The step on shapes alone: a micro-batch of `rows` x `length`."""
    tree = abstract_params(config)
    if kind == "full":
        trainable, frozen, policy = tree, {}, full_policy
    else:
        made = jax.eval_shape(functools.partial(adapters.init, rank=4), jax.random.key(0), tree)
        trainable, frozen, policy = made.factors, {"params": tree, "spec": made.spec}, adapter_policy
    optimizer = adamw(1e-3)
    state = jax.eval_shape(lambda t: init_state(t, optimizer), trainable)
    ints, floats = (jax.ShapeDtypeStruct((1, rows, length), dtype) for dtype in (jnp.int32, jnp.float32))
    named = {"tokens": ints, "segment_ids": ints, "positions": ints, "loss_mask": floats}
    batch = {"rows": named, "totals": {"tokens": jax.ShapeDtypeStruct((), jnp.float32)}}
    step = make_step(sft(config, policy, metrics=()), optimizer)
    return Program(function=step, arguments=(state, frozen, batch))


@functools.cache
def compiled(length, kind="lora", rows=1):
    return program(CONFIG, length, kind, rows).compile()


@functools.cache
def results(length, kind="lora", rows=1):
    """(opcode, dimensions) of every array that an instruction of the compiled program makes."""
    made = []
    for line in compiled(length, kind, rows).call.as_text().splitlines():
        found = re.match(r"\s*(?:ROOT )?%?\S+ = (\(.*?\)|\S+) ([\w-]+)\(", line)
        if found:
            shapes = re.findall(r"\w+\[([\d,]*)\]", found[1])
            made += [(found[2], tuple(int(n) for n in dims.split(",") if n)) for dims in shapes]
    return made


def shapes(length, kind="lora", rows=1):
    return {dims for _, dims in results(length, kind, rows)}


def test_memory_grows_with_the_length_and_not_its_square():
    """Temporaries of a LoRA step at T = 8192 are at most 2.2 times those at 4096.

    Mutation: jaxpost/models/attention.py: `BLOCK = 128  #` -> `BLOCK = 8192  #`
    Mutation: jaxpost/models/attention.py: `index, q = jax.lax.optimization_barrier((index, q))` -> `index = index + 0`
    """
    short, long = (compiled(length).memory.temp_bytes for length in (4096, 8192))
    assert 0 < short and long <= 2.2 * short


def test_no_buffer_is_a_square_of_the_length():
    """None is more than a sixteenth of one, masks included; the largest is the scores of a block, of two heads.

    Mutation: jaxpost/models/attention.py: `BLOCK = 128  #` -> `BLOCK = 2048  #`
    Mutation: jaxpost/models/attention.py: `index, q = jax.lax.optimization_barrier((index, q))` -> `index = index + 0`
    """
    assert (1, 4096, HIDDEN) in shapes(4096)  # the text is read
    sizes = [math.prod(dims) for dims in shapes(4096) if VOCAB not in dims]
    assert max(sizes) == 2 * BLOCK * 4096 <= 4096 * 4096 // 16


def test_no_buffer_holds_all_logits():
    """At four chunks and more the largest array with a vocabulary axis is one chunk's logits.

    Mutation: jaxpost/models/vocab.py: `weight.shape[0], chunk)` -> `weight.shape[0] // 4, chunk)`
    """
    assert 4096 >= 4 * CHUNK
    assert max(math.prod(dims) for dims in shapes(4096) if VOCAB in dims) == CHUNK * VOCAB


def heads_made(kind, length):
    """Arrays as large as the head that are computed, rather than passed on."""
    passed = {"parameter", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call"}
    sizes = ((VOCAB, HIDDEN), (HIDDEN, VOCAB))
    return [code for code, dims in results(length, kind) if dims in sizes and code not in passed]


def products_over_the_vocabulary(kind, length):
    """How many dots make a chunk's logits."""
    return sum(code == "dot" and set(dims) == {VOCAB, min(CHUNK, length)} for code, dims in results(length, kind))


def test_a_frozen_head_has_no_gradient_buffer():
    """No array [vocab, hidden] is made in a LoRA step, and the logits are made once; a full step needs both.

    Mutation: jaxpost/models/vocab.py: `if weight.perturbed or bias.perturbed:` -> `if True:`
    """
    assert heads_made("lora", 4096) == [] and products_over_the_vocabulary("lora", 4096) == 1
    assert heads_made("full", 256) != [] and products_over_the_vocabulary("full", 256) == 2


def test_only_floats_are_trained():
    for kind in ("lora", "full"):
        state = program(CONFIG, 128, kind).arguments[0]
        assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(state.trainable))


def test_only_the_state_is_donated():
    """Neither base weights, nor the adapter's spec, nor the batch; all of the state finds its place again.

    Mutation: jaxpost/train/step.py: `donate_argnums=0, out_shardings` -> `donate_argnums=(0, 1), out_shardings`
    """
    made = program(CONFIG, 4096)
    (state, frozen, batch), _ = made.function.lower(*made.arguments).args_info
    assert all(leaf.donated for leaf in jax.tree.leaves(state))
    assert not any(leaf.donated for leaf in jax.tree.leaves((frozen, batch)))
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    leaves = [leaf for leaf in jax.tree.leaves(made.arguments[0]) if not is_key(leaf)]
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    assert size <= compiled(4096).memory.alias_bytes <= size + 64  # and the key


def lines(kinds, kind="lora"):
    config = llama(kinds) if kinds[0] == PLAIN else gemma(kinds)
    made = program(config, 64, kind, rows=2)
    return made.function.lower(*made.arguments).as_text().count("\n")


@pytest.mark.parametrize("period", [(PLAIN,), (LOCAL, GLOBAL)], ids=["llama", "gemma"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_program_does_not_grow_with_the_layers(period, kind):
    """64 layers are written in at most 1.02 times the instructions of 8.

    Mutation: jaxpost/models/decoder.py: `unroll=stage.repeats if unroll else 1)` -> `unroll=stage.repeats)`
    """
    few, many = (lines(period * (n // len(period)), kind) for n in (8, 64))
    assert many <= 1.02 * few


def test_adapters_are_on_what_the_claims_are_about():
    made = program(CONFIG, 128).arguments[0].trainable
    linears = [path for path in matrices(abstract_params(CONFIG)) if path.startswith("layers/")]
    assert sorted(made) == sorted(linears)
