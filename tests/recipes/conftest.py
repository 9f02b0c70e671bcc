"""Runs of the recipes in this process, kept: what two tests ask for alike is run once."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from sft_runs import SMALL, Run, run_command, write_rows


@pytest.fixture(scope="session")
def tokenised(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tokenised")


@pytest.fixture(autouse=True)
def own_cache(tokenised, monkeypatch) -> None:
    """What runs tokenise is kept beside them, not in the cache of whoever runs the tests."""
    monkeypatch.setenv("JAXPOST_CACHE", str(tokenised))


@pytest.fixture(scope="session")
def rows(tmp_path_factory) -> Path:
    """Ten rows of every kind, of very different lengths; one is longer than 64 tokens."""
    chat = lambda n: [  # noqa: E731
        {"role": "user", "content": "ask " * n},
        {"role": "assistant", "content": "answer " * n},
    ]
    made: list[Any] = [{"prompt": f"q{i} ", "completion": "word " * (1 + i)} for i in range(5)]
    made += [{"text": "the other thing " * n} for n in (1, 2, 3)]
    made += [{"messages": chat(1)}, {"text": "0123456789 " * 8}]
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", made)


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Callable[..., Path]:
    """Checkpoints by their settings, each made once."""

    @functools.cache
    def make(family: str = "llama", **settings: Any) -> Path:
        return tiny.make(tmp_path_factory.mktemp("model"), family, **{"num_hidden_layers": 2, **settings})

    return make


@pytest.fixture(scope="session")
def sft(tmp_path_factory, rows, models) -> Callable[..., Run]:
    """`sft(*flags)`: the run of `jaxpost sft` on the small model and rows; `base` are the flags that come first."""

    @functools.cache
    def run(*flags: str, base: tuple[str, ...] = SMALL) -> Run:
        model = () if "--model" in flags else ("--model", str(models()))
        data = () if "--data" in flags else ("--data", str(rows))
        return run_command(tmp_path_factory.mktemp("sft") / "out", ("sft", *model, *data, *base, *flags))

    return run
