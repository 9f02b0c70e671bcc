"""The real model of the tests: SmolLM2-135M-Instruct, from scripts/demo_model's cache (the first call downloads it)."""

import functools
import os
import subprocess
import sys
from pathlib import Path

DEMO_MODEL = Path(__file__).parents[1] / "scripts" / "demo_model"


@functools.cache
def folder() -> Path:
    """The imported Hugging Face folder."""
    done = subprocess.run([sys.executable, str(DEMO_MODEL)], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip())


@functools.cache
def gguf_file() -> Path:
    """The GGUF file that it was imported from."""
    folder()
    cache = Path(os.environ.get("JAXPOST_CACHE") or Path.home() / ".cache" / "jaxpost")
    return cache / "SmolLM2-135M-Instruct.Q4_1.gguf"
