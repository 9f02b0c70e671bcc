"""Every test named after a trap says how to break the code, and what it says still applies (scripts/mutate runs it)."""

import ast
import re
from pathlib import Path

import pytest
from loading import load_script

ROOT = Path(__file__).resolve().parents[1]
TRAP = re.compile(r"(?:test|(?<=\d))_([A-Z]+\d+b?)(?=_)")  # a test may be named after two: test_D2_D7_...


mutate = load_script("mutate")
FOUND = list(mutate.mutations(ROOT / "tests"))


def traps():
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node, _ in mutate.functions(ast.parse(path.read_text(encoding="utf-8"))):
            yield from TRAP.findall(node.name)


@pytest.mark.parametrize("trap", sorted(set(traps())))
def test_a_trap_has_a_mutation(trap):
    """Of several tests of one trap some may compare with an oracle only; one at least says what breaks it."""
    named = {mutation.test.rpartition("::")[2] for mutation in FOUND}
    assert any(trap in TRAP.findall(name) for name in named), "no docstring line `Mutation: FILE: `old` -> `new``"


@pytest.mark.parametrize("mutation", FOUND, ids=lambda mutation: f"{mutation.test.rpartition('::')[2]}:{mutation.old}")
def test_a_mutation_applies(mutation):
    assert not mutate.stale(mutation, ROOT), mutate.stale(mutation, ROOT)
    assert mutation.old != mutation.new
    assert mutation.file.startswith(("jaxpost/", "kernels/")), "a mutation breaks the product"
    if mutation.file.endswith(".py"):
        source = (ROOT / mutation.file).read_text(encoding="utf-8").replace(mutation.old, mutation.new)
        ast.parse(source)  # one that cannot be imported proves nothing


TEST_FILE = '''
class TestThings:
    def test_S4_inner(self):
        """Packed.

        Mutation: jaxpost/a.py: `x = "`1`"` -> `x = 2`
        """

def test_plain():
    """Nothing."""

def helper():
    """Mutation: jaxpost/a.py: `no` -> `test`"""

def test_R5b_two():
    """Two.

    Mutation: jaxpost/a.py: `y` -> ``
    Mutation: jaxpost/b.py: `z` -> `z -> z`
    """
'''


def test_mutations_are_read_from_docstrings(tmp_path):
    (tmp_path / "tests" / "sub").mkdir(parents=True)
    (tmp_path / "tests" / "sub" / "test_a.py").write_text(TEST_FILE)
    assert [tuple(mutation) for mutation in mutate.mutations(tmp_path / "tests")] == [
        ("tests/sub/test_a.py::TestThings::test_S4_inner", "jaxpost/a.py", 'x = "`1`"', "x = 2"),
        ("tests/sub/test_a.py::test_R5b_two", "jaxpost/a.py", "y", ""),
        ("tests/sub/test_a.py::test_R5b_two", "jaxpost/b.py", "z", "z -> z"),
    ]


def test_a_fragment_must_occur_once(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\ny = x\n")
    mutation = mutate.Mutation("t", "a.py", "y = x", "y = 0")
    assert mutate.stale(mutation, tmp_path) == ""
    assert "2 times" in mutate.stale(mutation._replace(old="x"), tmp_path)
    assert "0 times" in mutate.stale(mutation._replace(old="zz"), tmp_path)
    assert "no such file" in mutate.stale(mutation._replace(file="b.py"), tmp_path)
