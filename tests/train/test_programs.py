"""Programs: compiled once, their memory said before they run, the largest micro-batch that fits."""

import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from refusals import refused

from jaxpost.sharding import make_mesh
from jaxpost.train import programs
from jaxpost.train.programs import (
    COLLECTIVES_IN_ORDER,
    SHARE,
    Memory,
    Program,
    compile_largest,
    free_bytes,
    mebibytes,
    memory_of,
)

KIB = 1024


def product(rows, donate=False, mesh=None):
    """x @ x.T summed over its rows, [rows, 64] float32: rows * 256 bytes of argument."""
    function = jax.jit(lambda x: (x + 1.0, (x @ x.T).sum(0)), donate_argnums=0 if donate else ())
    sharding = NamedSharding(mesh, P("data")) if mesh else None
    return Program(
        function=function, arguments=(jax.ShapeDtypeStruct((rows, 64), jnp.float32, sharding=sharding),), mesh=mesh
    )


@pytest.mark.parametrize("donate", [False, True])
def test_memory_is_counted_by_the_compiler(donate):
    memory = product(100, donate).compile().memory
    assert memory.argument_bytes == 100 * 64 * 4
    assert memory.output_bytes >= 100 * 64 * 4 + 100 * 4
    assert memory.alias_bytes == (100 * 64 * 4 if donate else 0)
    assert memory.peak_bytes == memory.argument_bytes + memory.new_bytes
    assert memory.new_bytes == memory.output_bytes - memory.alias_bytes + memory.temp_bytes


def test_what_is_compiled_is_what_runs():
    compiled = product(3).compile()
    y, total = compiled.call(jnp.ones((3, 64)))
    assert y.shape == (3, 64) and total.tolist() == [3 * 64.0] * 3
    assert memory_of(compiled.call) == compiled.memory
    with pytest.raises(TypeError):
        compiled.call(jnp.ones((4, 64)))  # no silent recompile


def test_a_program_on_a_mesh_counts_one_device():
    alone, spread = product(64).compile().memory, product(64, mesh=make_mesh((8, 1, 1))).compile().memory
    assert spread.argument_bytes * 8 == alone.argument_bytes


def test_the_largest_that_fits():
    """The first candidate whose programs all fit; those that were tried and failed are not returned."""
    tried = []

    def programs(size):
        tried.append(size)
        return {"short": product(size), "long": product(2 * size)}

    need = {size: max(p.compile().memory.new_bytes for p in programs(size).values()) for size in (64, 16, 4)}
    assert need[64] > need[16] > need[4]
    for budget, want in ((need[64], 64), (need[64] - 1, 16), (need[16], 16), (need[4], 4)):
        tried.clear()
        free = -(-budget * 10 // 9)
        while int(SHARE * free) > budget:  # the largest `free` whose share is no more than the budget
            free -= 1
        while int(SHARE * free) < budget:
            free += 1
        size, compiled = compile_largest(programs, [64, 16, 4], free)
        assert size == want and sorted(compiled) == ["long", "short"]
        assert tried == [n for n in (64, 16, 4) if n >= want]
        assert max(c.memory.new_bytes for c in compiled.values()) <= budget


def test_too_little_memory_is_refused():
    line = refused(
        lambda: compile_largest(lambda size: {0: product(size)}, [4, 2], free=100), "micro-batch of 2", "--max-length"
    )
    assert "MiB" in line


class Refusing:
    """A program whose compiler refuses it."""

    def __init__(self, message):
        self.message = message

    def compile(self):
        raise jax.errors.JaxRuntimeError(self.message)


def test_a_compiler_that_is_out_of_memory_means_a_smaller_size():
    """As accelerators' compilers refuse what cannot fit; any other failure is one."""
    programs = lambda size: {0: Refusing("RESOURCE_EXHAUSTED: 80 GiB") if size > 2 else product(size)}  # noqa: E731
    assert compile_largest(programs, [4, 2], free=2**30)[0] == 2
    refused(lambda: compile_largest(programs, [8, 4], free=2**30), "micro-batch of 4", "--max-length")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        compile_largest(lambda size: {0: Refusing("INTERNAL: no")}, [4], free=2**30)


class Recording:
    """A jitted function that writes down the options it is compiled with."""

    def __init__(self, function):
        self.function, self.options = function, []

    def lower(self, *arguments):
        self.lowered = self.function.lower(*arguments)
        return self

    def compile(self, compiler_options=None):
        self.options.append(compiler_options)
        return self.lowered.compile(compiler_options)


@pytest.mark.parametrize("mesh", [None, (8, 1, 1)])
def test_collectives_on_cpus_are_started_in_one_order(mesh):
    """With the default scheduler of JAX 0.10.2 a LoRA step on (1, 4, 2) hung in one of some ten runs."""
    made = product(64, mesh=make_mesh(mesh) if mesh else None)
    recording = Recording(made.function)
    compiled = Program(function=recording, arguments=made.arguments, mesh=made.mesh).compile()
    assert recording.options == [COLLECTIVES_IN_ORDER if mesh else None]
    given = jnp.ones((64, 64)) if made.mesh is None else jax.device_put(jnp.ones((64, 64)), made.arguments[0].sharding)
    assert compiled.call(given)[1].tolist() == [64 * 64.0] * 64


def test_free_memory_is_asked_of_the_device():
    assert 0 < free_bytes() < 2**50
    size, _ = compile_largest(lambda size: {0: product(size)}, [4, 2])
    assert size == 4


@pytest.mark.parametrize(("bound", "used", "want"), [("1000", "400", 616), ("1000", "1200", 0), ("max", "5", 2**40)])
def test_a_container_bounds_the_free_memory(tmp_path, monkeypatch, bound, used, want):
    """Mutation: jaxpost/train/programs.py: `min(psutil.virtual_memory().available, _container_bytes())` -> `psutil.virtual_memory().available`"""  # noqa: E501
    (tmp_path / "memory.max").write_text(bound + "\n")
    (tmp_path / "memory.current").write_text(used + "\n")
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 16\n")
    monkeypatch.setattr(programs, "CGROUP", tmp_path)
    monkeypatch.setattr(programs.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=2**40))
    assert free_bytes() == want // len(jax.local_devices())
    monkeypatch.setattr(programs, "CGROUP", tmp_path / "none")
    assert free_bytes() == 2**40 // len(jax.local_devices())


def test_peak_is_arguments_and_what_is_new():
    memory = Memory(argument_bytes=10 * KIB, output_bytes=8 * KIB, alias_bytes=6 * KIB, temp_bytes=3 * KIB)
    assert (memory.new_bytes, memory.peak_bytes) == (5 * KIB, 15 * KIB)
    assert mebibytes(1536 * KIB * 1024) == "1,536 MiB"
