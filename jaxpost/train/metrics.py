"""What a run reports: one record a step, means weighted by what they are means of."""

import io
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxpost.core.files import write_file


def record(step: int, device: Mapping[str, Any], host: Mapping[str, Any]) -> dict[str, Any]:
    """One line of `metrics.jsonl`: (sum, count) pairs become means, everything else a number."""
    plain = {name: _number(value) for name, value in device.items() if name != "updates"}
    return {"step": step, **plain, **host}


def _number(value: Any) -> float | int | None:
    """A JSON number; null where there is none, or none that JSON can write."""
    if isinstance(value, tuple):
        total, count = (float(part) for part in value)
        number = total / count if count else math.nan
    else:
        number = value.item()
    return number if math.isfinite(number) else None


def weighted_mean(records: Iterable[Mapping[str, Any]], name: str = "loss", weight: str = "trained_tokens") -> float:
    """The mean over a window of steps, each step weighed by its trained tokens.

    >>> weighted_mean([{"loss": 1.0, "trained_tokens": 3}, {"loss": 5.0, "trained_tokens": 1}])
    2.0
    """
    pairs = [(r[name], r[weight]) for r in records if r.get(name) is not None]
    total = sum(w for _, w in pairs)
    return sum(value * w for value, w in pairs) / total if total else float("nan")


class MetricsFile:
    """Appends records to `metrics.jsonl`, one line each, written at once: a killed run keeps what it wrote."""

    def __init__(self, path: Path):
        self._file = path.open("ab", buffering=0)
        self._end = self._file.seek(0, os.SEEK_END)

    def write(self, values: Mapping[str, Any]) -> None:
        """Appends the line; after an OSError (a full disk) the file is as it was."""
        line = json.dumps(values).encode() + b"\n"
        try:
            _write_whole(self._file, line)
        except OSError:
            self._file.truncate(self._end)
            raise
        self._end += len(line)

    def sync(self) -> None:
        """On the disk: a checkpoint that is there has its records there too."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()


def _write_whole(file: io.FileIO, data: bytes) -> None:
    """A disk that is nearly full takes a part first, and only then says so."""
    while data:
        data = data[file.write(data) :]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`; none where there is no file. Lines that a crash cut short are left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return [record for line in lines if (record := _parsed(line)) is not None]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def cut_back(path: Path, step: int) -> list[dict[str, Any]]:
    """Drops the records after `step`, which a run that goes on from there makes again; returns those that stay.

    What a crash cut short is dropped as well; without a file there are no records.
    """
    records = [record for record in read_metrics(path) if record["step"] <= step]
    write_file(path, "".join(json.dumps(record) + "\n" for record in records))
    return records


def missing_steps(records: Iterable[Mapping[str, Any]], step: int) -> list[int]:
    """The steps 1 to `step` that have no record of training.

    >>> missing_steps([{"step": 0, "eval_loss": 2.0}, {"step": 1, "loss": 1.5}, {"step": 3, "loss": None}], 4)
    [2, 4]
    """
    there = {record["step"] for record in records if "loss" in record}
    return [n for n in range(1, step + 1) if n not in there]


class Rate:
    """Tokens a second between two calls."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def __call__(self, tokens: int) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return tokens / max(seconds, 1e-9)
