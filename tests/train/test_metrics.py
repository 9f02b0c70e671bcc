"""Records: means weighted by what they are means of, in JSON that any reader takes."""

import io
import json
import math

import numpy as np
import pytest

from jaxpost.train.metrics import MetricsFile, Rate, read_metrics, record, weighted_mean


def test_a_record_has_means_and_numbers():
    device = {
        "loss": np.float32(1.5),
        "accuracy": (np.float32(3.0), np.float32(4.0)),
        "skipped": np.int32(0),
        "updates": np.int32(7),
    }
    assert record(3, device, {"num_tokens": 10}) == {
        "step": 3,
        "loss": 1.5,
        "accuracy": 0.75,
        "skipped": 0,
        "num_tokens": 10,
    }


def test_numbers_that_json_cannot_write_are_null():
    device = {"loss": np.float32("nan"), "grad_norm": np.float32("inf"), "accuracy": (np.float32(0), np.float32(0))}
    made = record(1, device, {})
    assert made == {"step": 1, "loss": None, "grad_norm": None, "accuracy": None}
    json.dumps(made, allow_nan=False)


@pytest.mark.parametrize("sums", [(np.float32("nan"), np.float32(2)), (np.float32("inf"), np.float32(2))])
def test_means_that_json_cannot_write_are_null(sums):
    assert record(1, {"entropy": sums}, {}) == {"step": 1, "entropy": None}


def test_S11_a_window_is_a_token_mean():
    """Steps of 3, 1 and 6 tokens: the mean over all tokens, not over steps; a skipped step has none.

    Mutation: jaxpost/train/metrics.py: `sum(value * w for value, w in pairs) / total if total` -> `sum(value for value, w in pairs) / len(pairs) if total`
    """  # noqa: E501
    steps = [(1.0, 3), (5.0, 1), (None, 100), (2.0, 6)]
    records = [{"loss": loss, "trained_tokens": n} for loss, n in steps]
    assert weighted_mean(records) == (3 * 1 + 1 * 5 + 6 * 2) / 10
    assert math.isnan(weighted_mean([])) and math.isnan(weighted_mean([{"loss": 1.0, "trained_tokens": 0}]))
    assert weighted_mean([{"accuracy": 0.5, "n": 2}, {"accuracy": 1.0, "n": 2}], "accuracy", "n") == 0.75


def test_a_file_is_whole_after_every_line(tmp_path):
    """Flushed at once, appended to when opened again."""
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        for n in range(3):
            file.write({"step": n, "loss": None if n == 1 else 0.5})
            assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == list(range(n + 1))
    with MetricsFile(path) as file:
        file.write({"step": 3})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3] and lines[1]["loss"] is None


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    """A disk that takes half a line and then no more: the next line is whole.

    Mutation: jaxpost/train/metrics.py: `            self._file.truncate(self._end)` -> `            pass`
    Mutation: jaxpost/train/metrics.py: `data = data[file.write(data) :]` -> `data = data[file.write(data) + len(data) :]`
    """  # noqa: E501
    path, room = tmp_path / "metrics.jsonl", [1000]

    class Disk(io.FileIO):
        def write(self, data):
            if not room[0]:
                raise OSError(28, "No space left on device")
            taken = super().write(data[: min(room[0], 7)])
            room[0] -= taken
            return taken

    with monkeypatch.context() as patched:
        patched.setattr(type(path), "open", lambda self, *_, **__: Disk(self, "ab"))
        file = MetricsFile(path)
    with file:
        file.write({"step": 1})
        room[0] = 9
        with pytest.raises(OSError, match="No space"):
            file.write({"step": 2})
        room[0] = 1000
        for step in (2, 3):
            file.write({"step": step})
        file.sync()
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_a_line_that_was_cut_short_is_left_out(tmp_path):
    """Mutation: jaxpost/train/metrics.py: `(record := _parsed(line)) is not None` -> `(record := json.loads(line))`"""
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert [record["step"] for record in read_metrics(path)] == [1, 2]


def test_tokens_a_second(monkeypatch):
    clock = iter([10.0, 12.0, 12.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    rate = Rate()
    assert rate(100) == 50.0
    assert math.isfinite(rate(100))  # no time has passed
