"""Runs of `jaxpost sft` in tests: what they wrote, said and compiled."""

import contextlib
import dataclasses
import functools
import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tiny
from safetensors.numpy import load_file

from jaxpost import cli
from jaxpost.recipes import sft_setup as recipe
from jaxpost.train.checkpoint import steps_of

# The smallest run that shows everything: four steps of two packed rows, into the second epoch.
SMALL = ("--steps", "4", "--batch-size", "2", "--max-length", "64", "--dtype", "float32")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a command left behind. Nobody writes into `out`."""

    status: int
    out: Path
    stdout: str
    stderr: str
    compiled: Mapping[Any, Any]  # bucket -> jaxpost.train.programs.Compiled

    @functools.cached_property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

    @functools.cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """Every tensor of the output folder by name."""
        return {name: t for file in sorted(self.out.glob("*.safetensors")) for name, t in load_file(file).items()}

    @property
    def buckets(self) -> list[tuple[int, int, int]]:
        return list(self.compiled)

    @property
    def temp_bytes(self) -> int:
        return sum(program.memory.temp_bytes for program in self.compiled.values())

    def column(self, name: str) -> list[Any]:
        return [record[name] for record in self.records]

    def digest(self) -> dict[str, bytes]:
        """The tensors, bit by bit."""
        return {name: t.tobytes() for name, t in self.weights.items()}


def run_command(out: Path, argv: tuple[str, ...]) -> Run:
    """Runs `jaxpost ARGV --output OUT`, with the programs that it compiled."""
    compiled: dict[Any, Any] = {}

    def spy(*arguments: Any) -> Any:
        size, programs = original(*arguments)
        compiled.update(programs)
        return size, programs

    original = recipe.compile_largest
    stdout, stderr = io.StringIO(), io.StringIO()
    with mock.patch.object(recipe, "compile_largest", spy):
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            status = cli.main([*argv, "--output", str(out)])
    return Run(status=status, out=out, stdout=stdout.getvalue(), stderr=stderr.getvalue(), compiled=compiled)


def write_clock(path: Path) -> Path:
    """A chat template that writes the day, as Llama 3.2's does."""
    path.write_text("{{ '<|im_start|>system:' + strftime_now('%d %b %Y') + '<|im_end|>' }}" + tiny.CHATML)
    return path


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def interrupted(run: Run, folder, step: int) -> Run:
    """A copy of a finished run as a kill after `step` and before the next checkpoint would have left it."""
    out = shutil.copytree(run.out, folder)
    for later in (s for s in steps_of(out / "checkpoints") if s > step):
        shutil.rmtree(out / "checkpoints" / str(later))
    for name in ("train_results.json", "adapter_model.safetensors", "adapter_config.json", "model.safetensors"):
        (out / name).unlink(missing_ok=True)
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')
    return dataclasses.replace(run, out=out)


def resume(run: Run, *flags: str) -> Run:
    """Goes on in the folder of `run` with its own options, then `flags`."""
    return run_command(run.out, ("sft", "--config", str(run.out / "run.yaml"), *flags, "--resume"))
