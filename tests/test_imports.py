"""Imports flow one way: each row of rooms only to the rows above, rooms of one row not to each other."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "jaxpost"

ROWS = [
    ["core"],
    ["weights", "stages", "sharding"],
    ["kernels"],
    ["quant"],
    ["adapters", "losses"],
    ["models"],
    ["data", "rewards"],
    ["hub", "objectives"],
    ["train", "sampling", "merge"],
    ["evaluate", "planner", "report"],
    ["recipes"],
    ["cli"],
]
ROW_OF = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
ONLY = {"flax": {"models", "hub", "objectives"}, "report": {"core"}}  # rooms with a list of their own
NO_JAX = {"core", "data", "rewards", "cli"}
FORBIDDEN = {"torch", "peft", "trl", "bitsandbytes", "accelerate"}  # oracles of the tests


def room_of(path: Path) -> str:
    inside = path.relative_to(PACKAGE)
    return inside.parts[0].removesuffix(".py")


def sources() -> list[Path]:
    modules = [path for path in sorted(PACKAGE.rglob("*.py")) if "kernels" not in path.relative_to(PACKAGE).parts]
    return [path for path in modules if path != PACKAGE / "__init__.py"]


def imported(path: Path) -> set[str]:
    """Dotted names of everything a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def allowed(importer: str, target: str) -> bool:
    """Whether a module of room `importer` may import room `target`.

    >>> allowed("models", "adapters"), allowed("adapters", "losses"), allowed("report", "models")
    (True, False, False)
    """
    if importer == target:
        return True
    if importer in ONLY:
        return target in ONLY[importer] | {"core"}
    return ROW_OF[target] < ROW_OF[importer]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_the_rows_above(path):
    importer = room_of(path)
    assert importer in ROW_OF or importer in ONLY, f"`{importer}` has no row: add it to ROWS and to the design"
    for name in imported(path):
        if name == "jaxpost":
            assert importer == "cli", f"{path}: import the room, not the package"
        elif name.startswith("jaxpost."):
            target = name.split(".")[1]
            assert allowed(importer, target), f"{path} imports {name}: {importer} must not know {target}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_no_oracle_and_no_jax_where_none_belongs(path):
    tops = {name.split(".")[0] for name in imported(path)}
    assert not tops & FORBIDDEN
    if room_of(path) in NO_JAX:
        assert not tops & {"jax", "jaxlib", "flax", "optax", "orbax"}


def test_the_rules_can_fail():
    assert not allowed("core", "weights") and not allowed("weights", "stages") and not allowed("recipes", "cli")
    assert allowed("quant", "kernels") and allowed("flax", "hub") and not allowed("flax", "train")


@pytest.mark.parametrize("room", ["core", "data", "rewards"])
def test_rooms_without_jax_load_none_even_indirectly(room):
    modules = [
        f"jaxpost.{room}.{path.stem}" for path in sorted((PACKAGE / room).glob("*.py")) if path.stem != "__init__"
    ]
    assert modules
    code = f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\n"
    code += "print(sorted({'jax', 'jaxlib', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_every_module_can_be_imported():
    for path in sources():
        importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
