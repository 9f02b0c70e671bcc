"""`jaxpost.flax` without Flax, or with one that is not made for this JAX: one line each."""

import subprocess
import sys

import pytest

CODE = """
import sys
sys.path.insert(0, sys.argv[1])
{before}
import jaxpost
from jaxpost.core.errors import InputError
try:
    jaxpost.flax
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "before, mentions", [("sys.modules['flax'] = None", ["got none", "jaxpost[flax]"]), ("", ["inner", "Update flax"])]
)
def test_flax_is_optional(tmp_path, before, mentions):
    """jaxpost itself imports; the first use of the views says what is missing, or that the two do not fit.

    Mutation: jaxpost/flax/__init__.py: `except ModuleNotFoundError as error:` -> `except ZeroDivisionError as error:`
    Mutation: jaxpost/flax/__init__.py: `except AttributeError as error:` -> `except ZeroDivisionError as error:`
    """
    (tmp_path / "flax").mkdir()
    (tmp_path / "flax" / "__init__.py").write_text("import jax\njax.inner\n")
    command = [sys.executable, "-c", CODE.format(before=before), tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("`jaxpost.flax` needs") and done.stdout.count("\n") == 1
    assert all(text in done.stdout for text in mentions)
