"""Two runs with one output folder: the second is refused, whenever it comes."""

import pytest
from sft_runs import SMALL, resume, run_command

from jaxpost.core import lock
from jaxpost.core.lock import FolderLock
from jaxpost.recipes import sft as recipe

pytestmark = pytest.mark.skipif(lock.fcntl is None, reason="the system has no such locks")


@pytest.fixture
def argv(models, rows):
    return ("sft", "--model", str(models()), "--data", str(rows), *SMALL)


def test_a_run_that_goes_on_is_left_alone(argv, tmp_path, monkeypatch):
    """Another start in the middle of it is one line before anything is loaded, and the run ends as alone.

    Mutation: jaxpost/recipes/sft.py: `            lock.take()` -> `            pass`
    """
    out, original, others = tmp_path / "out", recipe.device_batch, []

    def busy(setup, step):
        if step == 2 and not others:
            others.extend(run_command(out, (*argv, *flags)) for flags in (("--resume",), ()))
        return original(setup, step)

    monkeypatch.setattr(recipe, "device_batch", busy)
    run = run_command(out, argv)
    for other in others:
        assert other.status == 2 and other.stderr.count("\n") == 1 and not other.compiled
        assert "no other run writes into" in other.stderr and str(out) in other.stderr
    assert len(others) == 2 and run.status == 0 and run.digest() == run_command(tmp_path / "alone", argv).digest()
    assert run.column("step") == [1, 2, 3, 4] and not (out / ".lock").exists()
    assert resume(run).status == 0


@pytest.mark.parametrize("how", ["at work", "finished"])
def test_of_two_that_start_together_one_goes_on(how, argv, tmp_path, monkeypatch):
    """The second finds the folder free when it looks, and taken when it has compiled.

    Mutation: jaxpost/recipes/sft_resume.py: `    lock.take()` -> `    pass`
    Mutation: jaxpost/recipes/sft_resume.py: `    if not _is_unused(output):` -> `    if False:`
    """
    out, original = tmp_path / "out", recipe.compile_steps

    def first(*arguments):
        monkeypatch.setattr(recipe, "compile_steps", original)
        out.mkdir()
        if how == "finished":
            assert run_command(out, (*argv, "--steps", "1")).status == 0
        else:
            held.take()
        return original(*arguments)

    monkeypatch.setattr(recipe, "compile_steps", first)
    with FolderLock(out) as held:
        second = run_command(out, argv)
        assert second.status == 2 and "`--output` must be a folder that no other run " in second.stderr
        assert how == "finished" or [path.name for path in out.iterdir()] == [".lock"]


def test_what_a_kill_left_of_a_start_is_no_run(argv, tmp_path):
    """A lock and a half-written run.yaml, both hidden: it starts at 0, with `--resume` or without.

    Mutation: jaxpost/recipes/sft_resume.py: `item.name == LOCK or is_leftover(item.name)` -> `is_leftover(item.name)`
    """
    for flags in ((), ("--resume",)):
        out = tmp_path / f"out{len(flags)}"
        out.mkdir()
        (out / ".lock").touch()
        (out / ".jaxpost-aside-0123abc_").write_text("half")
        assert run_command(out, (*argv, *flags)).status == 0
        assert not any(path.name.startswith(".") for path in out.iterdir())
