"""The command line's frame: commands, errors as one line, exit statuses, nothing heavy loaded for help."""

import importlib.util
import subprocess
import sys
import types

import pytest

import jaxpost
from jaxpost import cli
from jaxpost.core.errors import InputError


def install(monkeypatch, main):
    """A command `fake` that runs `main`."""
    module = types.ModuleType("fake_recipe")
    module.main = main  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "fake_recipe", module)
    monkeypatch.setitem(cli.COMMANDS, "fake", ("fake_recipe:main", "does nothing"))


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["--version"], [], ["sfft"]])
def test_help_and_version_load_no_jax(argv):
    heavy = "{'jax', 'jaxlib', 'transformers', 'torch', 'numpy'} & set(sys.modules)"
    done = python(f"import sys, jaxpost.cli; jaxpost.cli.main({argv}); print('loaded:', {heavy})")
    assert done.returncode == 0 and "loaded: set()" in done.stdout, done.stdout + done.stderr


def test_help_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {command}" in text for command in cli.COMMANDS)
    assert max(map(len, text.splitlines())) <= 100
    assert cli.main([]) == 2, "no command is a usage error"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_exists(command):
    module, function = cli.COMMANDS[command][0].split(":")
    assert importlib.util.find_spec(module) is not None
    assert callable(getattr(importlib.import_module(module), function))


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxpost {jaxpost.__version__}\n"


def test_an_unknown_command_is_refused_with_a_suggestion(capsys):
    assert cli.main(["sfft", "--model", "m"]) == 2
    assert capsys.readouterr().err == 'jaxpost: error: unknown command `sfft`. Did you mean "sft"?\n'
    assert cli.main(["zzz"]) == 2
    assert "Commands: sft" in capsys.readouterr().err


def test_arguments_and_status_go_through(monkeypatch):
    seen = []
    install(monkeypatch, lambda argv: seen.append(argv) or 0)
    assert cli.main(["fake", "--a", "1"]) == 0
    assert seen == [["--a", "1"]]


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InputError("`x` must be\n  a number; got y."), 2, "jaxpost: error: `x` must be a number; got y.\n"),
        (KeyboardInterrupt(), 130, "jaxpost: interrupted\n"),
    ],
)
def test_errors_of_the_user_are_one_line(error, status, message, monkeypatch, capsys):
    def main(argv):
        raise error

    install(monkeypatch, main)
    assert cli.main(["fake"]) == status
    assert capsys.readouterr() == ("", message)


def test_errors_of_ours_keep_their_traceback(monkeypatch, capsys):
    def main(argv):
        raise ZeroDivisionError("boom")

    install(monkeypatch, main)
    assert cli.main(["fake"]) == 1
    assert "Traceback" in (err := capsys.readouterr().err) and "boom" in err


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself_and_refuses_an_unknown_flag(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0 and f"usage: jaxpost {command}" in capsys.readouterr().out
    assert cli.main([command, "--no-such-flag", "1"]) == 2
    err = capsys.readouterr().err
    assert "`--no-such-flag`" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_every_public_name_can_be_loaded():
    for name in jaxpost.__all__:
        assert getattr(jaxpost, name) is not None
    assert set(jaxpost.__all__) <= set(dir(jaxpost))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = jaxpost.lod


def test_importing_jaxpost_loads_no_jax():
    done = python(
        "import sys, jaxpost; dir(jaxpost); print(sorted({'jax', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    assert done.stdout == "[]\n", done.stderr
