"""Programs compiled before step 0: what runs, what it costs in memory, and the largest micro-batch that fits."""

import ctypes
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import psutil
from jax.sharding import Mesh

from jaxpost.core.errors import InputError

CGROUP = Path("/sys/fs/cgroup")
SHARE = 0.9  # of the memory that is free which a program may ask for
# XLA:CPU of JAX 0.10.2 otherwise starts independent collectives in another order on each device: some programs hang.
COLLECTIVES_IN_ORDER = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one compiled program on one device, as the compiler counts them."""

    argument_bytes: int
    output_bytes: int
    alias_bytes: int  # of outputs that take a donated argument's place
    temp_bytes: int

    @property
    def peak_bytes(self) -> int:
        return self.argument_bytes + self.new_bytes

    @property
    def new_bytes(self) -> int:
        """Beyond the arguments, which are there already."""
        return self.output_bytes - self.alias_bytes + self.temp_bytes


@dataclass(frozen=True, kw_only=True)
class Program:
    """A jitted function with the shapes it will see: the same object is printed, compiled and run."""

    function: Any  # of jax.jit
    arguments: tuple[Any, ...]  # trees of arrays or ShapeDtypeStructs
    mesh: Mesh | None = None

    def compile(self) -> "Compiled":
        on_cpus = self.mesh is not None and self.mesh.devices.flat[0].platform == "cpu"
        with jax.set_mesh(self.mesh) if self.mesh else nullcontext():
            lowered = self.function.lower(*self.arguments)
            executable = lowered.compile(compiler_options=COLLECTIVES_IN_ORDER if on_cpus else None)
        _trim_heap()
        return Compiled(call=executable, memory=memory_of(executable))


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """The executable of a program."""

    call: Callable[..., Any]
    memory: Memory


def _trim_heap() -> None:
    """Gives back to the system what the compiler has freed: glibc keeps about 250 MB of it otherwise (measured)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def memory_of(executable: Any) -> Memory:
    """What `memory_analysis()` of a compiled function says, in bytes."""
    m = executable.memory_analysis()
    return Memory(
        argument_bytes=m.argument_size_in_bytes,
        output_bytes=m.output_size_in_bytes,
        alias_bytes=m.alias_size_in_bytes,
        temp_bytes=m.temp_size_in_bytes,
    )


def free_bytes() -> int:
    """Memory that a program may still take on one device: of the accelerator, or of the host where that is it."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return int(min(psutil.virtual_memory().available, _container_bytes())) // len(jax.local_devices())


def _container_bytes() -> float:
    """What a container (cgroup v2) still allows, which the host's figure does not tell; no bound: infinity.

    Files that were read count as used there, although the kernel drops those that nobody looks at when it must.
    """
    try:
        bound, used = ((CGROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        fields = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except OSError:
        return math.inf
    free = math.inf if bound == "max" else float(bound) - float(used) + float(fields.get("inactive_file", 0))
    return max(0.0, free)


def compile_largest(
    programs: Callable[[int], Mapping[Any, Program]], candidates: Sequence[int], free: int | None = None
) -> tuple[int, dict[Any, Compiled]]:
    """The first micro-batch size whose programs all fit, and those programs, compiled.

    Args:
      programs: micro-batch size -> the program of each bucket.
      candidates: sizes to try, largest first.
      free: bytes at hand, None asks the device.

    Raises:
      InputError: the smallest does not fit.
    """
    budget = int(SHARE * (free_bytes() if free is None else free))
    needed = "more memory than there is"
    for size in candidates:
        try:
            compiled = {key: program.compile() for key, program in programs(size).items()}
        except jax.errors.JaxRuntimeError as error:  # accelerators' compilers refuse what cannot fit
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            continue
        most = max(program.memory.new_bytes for program in compiled.values())
        if most <= budget:
            return size, compiled
        needed = f"{mebibytes(most)} beyond the weights"
    raise InputError(
        f"a micro-batch of {candidates[-1]} needs {needed}; {mebibytes(budget)} are free. Lower `--max-length`, "
        "or train an adapter instead of `--full`."
    )


def mebibytes(count: int) -> str:
    """
    >>> mebibytes(3 * 2**20)
    '3 MiB'
    """
    return f"{count / 2**20:,.0f} MiB"
