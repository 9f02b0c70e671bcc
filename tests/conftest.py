"""Settings of every test: eight virtual CPU devices, strict ranks, one shared compilation cache, a core per worker."""

import hashlib
import os
import platform
import sys
from pathlib import Path

CACHE = Path(os.environ.get("JAXPOST_CACHE") or Path.home() / ".cache" / "jaxpost")


def _processor() -> str:
    """A hash of the instruction set: compiled code is shared between processors of one kind only."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:8]


def _settings() -> dict[str, str]:
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    threads = max(1, (os.cpu_count() or 1) // workers)
    single = " --xla_cpu_multi_thread_eigen=false" if threads == 1 else ""
    return {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=8{single}",
        "NPROC": str(threads),  # XLA's thread pool
        "OMP_NUM_THREADS": str(threads),
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "JAX_COMPILATION_CACHE_DIR": str(CACHE / f"xla-{_processor()}"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "HF_HUB_OFFLINE": "1",  # no test downloads
        "TOKENIZERS_PARALLELISM": "false",
    }


# They act only before jax is imported; whoever sets a variable outside decides.
assert "jax" not in sys.modules, "jax was imported before tests/conftest.py"
for _name, _value in _settings().items():
    os.environ.setdefault(_name, _value)
