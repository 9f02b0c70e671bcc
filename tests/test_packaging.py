"""Packaging: what is installed is the whole tree, and `kernels/` hides nobody's package."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# distribution -> module, where the names differ
MODULES = {"orbax-checkpoint": "orbax", "pyyaml": "yaml", "tensorboardx": "tensorboardX"}


def elsewhere(code, folder):
    """Runs `code` in a fresh interpreter from another folder."""
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)


def test_kernels_are_ours_under_our_name_only(tmp_path):
    code = "import jaxpost.kernels, importlib.util as u; print(jaxpost.kernels.__doc__); print(u.find_spec('kernels'))"
    done = elsewhere(code, tmp_path)
    assert done.returncode == 0, done.stderr
    name, spec = done.stdout.rsplit("\n", 2)[:2]
    assert name.startswith("jaxpost.kernels:")
    assert spec == "None" or "site-packages" in spec


@pytest.mark.parametrize("path", ["kernels/__init__.py", "conftest.py", "tests/__init__.py", "__init__.py", "setup.py"])
def test_no_file_that_would_put_the_root_on_the_path(path):
    assert not (ROOT / path).exists()


def test_the_list_of_packages_is_that_of_the_folders():
    folders = {path.parent for path in (ROOT / "jaxpost").rglob("*.py")} - {ROOT / "jaxpost" / "kernels"}
    on_disk = {".".join(folder.relative_to(ROOT).parts) for folder in folders} | {"jaxpost.kernels"}
    kernels = {path.parent for path in (ROOT / "kernels" / "src").rglob("*.py")} - {ROOT / "kernels" / "src"}
    on_disk |= {
        ".".join(["jaxpost.kernels", *folder.relative_to(ROOT / "kernels" / "src").parts]) for folder in kernels
    }
    assert sorted(on_disk) == PROJECT["tool"]["setuptools"]["packages"]
    assert all((folder / "__init__.py").exists() for folder in folders | kernels)


def third_party() -> set[str]:
    """Top-level modules that jaxpost imports and that are neither ours nor Python's."""
    names: set[str] = set()
    for path in [*(ROOT / "jaxpost").rglob("*.py"), *(ROOT / "kernels" / "src").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"jaxpost"}


def module_names(requirements) -> set[str]:
    names = {re.split(r"[\[<>=! ;]", requirement)[0].lower() for requirement in requirements}
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


def test_the_dependencies_are_what_is_imported():
    declared = module_names(PROJECT["project"]["dependencies"])
    extras = PROJECT["project"]["optional-dependencies"]
    optional = module_names([*extras["plots"], *extras["flax"]])
    assert third_party() - optional == declared


def test_no_upper_bounds():
    extras = PROJECT["project"]["optional-dependencies"].values()
    for requirement in [*PROJECT["project"]["dependencies"], *(line for extra in extras for line in extra)]:
        assert not re.search(r"<|==|~=", requirement), requirement


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-newest.lock"])
def test_a_lock_file_pins_every_line_and_names_no_address(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(r"# python 3\.\d+", lines[0])
    for line in lines:
        assert line.startswith("#") or re.fullmatch(r"[\w.-]+==[\w.]+( ; .+)?", line), line
    locked = module_names(line for line in lines if not line.startswith("#"))
    assert module_names(PROJECT["project"]["dependencies"]) <= locked


def test_the_oracles_are_locked_for_the_oldest_python_only():
    oldest, newest = ((ROOT / name).read_text() for name in ("requirements.lock", "requirements-newest.lock"))
    oracles = module_names(PROJECT["project"]["optional-dependencies"]["parity"]) - {"datasets"}
    assert all(f"\n{oracle}==" in oldest for oracle in oracles)
    assert not any(f"\n{oracle}==" in newest for oracle in oracles)
    assert "\njax==0.10.2\n" in oldest and "\njax==0.10.2\n" not in newest


def test_the_command_is_installed():
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="jaxpost")
    assert entry.value == "jaxpost.cli:main"
    assert importlib.metadata.version("jaxpost") == __import__("jaxpost").__version__


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_template(tmp_path):
    """Measured elsewhere: a package missing in the list works in an editable install and is absent from the wheel."""
    import shutil
    import zipfile

    skipped = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "tests", "__pycache__")
    copy = shutil.copytree(ROOT, tmp_path / "tree", ignore=skipped)
    command = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "-w", tmp_path, copy]
    subprocess.run(command, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith((".py", ".jinja"))}
    ours = {str(p.relative_to(ROOT)) for kind in ("*.py", "*.jinja") for p in (ROOT / "jaxpost").rglob(kind)}
    kernels = {f"jaxpost/kernels/{path.name}" for path in (ROOT / "kernels" / "src").glob("*.py")}
    assert held == ours | kernels
