"""House rules that a machine can see: sizes of files, words that must not appear, calls that are never safe."""

import ast
import re
import statistics
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST, MEDIAN = 500, 160  # lines

# Put together from pieces, so that this file does not hold them.
MACHINE_PATHS = re.compile("(?<![\\w.~$}-])/(" + "|".join(["wo" + "rk", "ro" + "ot", "ho" + "me", "Us" + "ers"]) + ")/")
REGISTRIES = re.compile("|".join(["pypi" + r"\.org", "pythonhosted" + r"\.org", "npmjs" + r"\.", "deb" + r"ian\.org"]))
MARKS = re.compile(
    r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK", "raise " + "NotImplementedError"]) + r")\b"
)
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "__import__"}


def tracked() -> list[Path]:
    """The files of the repository: git's, or in a copy without git those of the folders that hold ours."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return sorted(path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file())
    folders = [ROOT / name for name in ("jaxpost", "kernels", "scripts", "tests", ".ci")]
    inside = [path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return sorted(path for path in [*ROOT.iterdir(), *inside] if path.is_file())


def is_python(path: Path) -> bool:
    return path.suffix == ".py" or (path.parent.name == "scripts" and "python" in path.read_text().partition("\n")[0])


TRACKED = tracked()
PYTHON = [path for path in TRACKED if is_python(path)]
PRODUCT = [path for path in PYTHON if path.relative_to(ROOT).parts[0] in ("jaxpost", "kernels")]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_files_are_short():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PRODUCT}
    assert {relative(path): count for path, count in lines.items() if count > LONGEST} == {}
    assert statistics.median(count for count in lines.values() if count > 1) <= MEDIAN
    tests = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PYTHON if path not in PRODUCT}
    assert {relative(path): count for path, count in tests.items() if count > LONGEST} == {}


@pytest.mark.parametrize("pattern", [MACHINE_PATHS, REGISTRIES], ids=["machine paths", "registry hosts"])
def test_no_file_names_a_machine_or_a_registry(pattern):
    found = []
    for path in TRACKED:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{relative(path)}: {match.group()}" for match in pattern.finditer(text)]
    assert found == []


def test_the_patterns_can_match():
    assert MACHINE_PATHS.search("see /ro" + "ot/x") and not MACHINE_PATHS.search("model/ro" + "ot/x")
    assert REGISTRIES.search("https://pypi" + ".org/simple")


def test_nothing_is_left_for_later():
    assert [relative(path) for path in PYTHON if MARKS.search(path.read_text(encoding="utf-8"))] == []


def unsafe(path: Path) -> list[str]:
    """What in a file could run code that a data or model file brings along."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE_MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in UNSAFE_CALLS:
                found.append(node.func.id)
            for keyword in node.keywords:
                literal_false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in ("trust_remote_code", "allow_pickle") and not literal_false:
                    found.append(str(keyword.arg))
    return found


@pytest.mark.parametrize("path", PRODUCT, ids=relative)
def test_nothing_runs_code_that_a_file_brings(path):
    assert unsafe(path) == []


def test_unsafe_code_is_seen(tmp_path):
    (tmp_path / "a.py").write_text(
        "import pickle\nx = eval('1')\nload(trust_remote_code=flag)\nload(trust_remote_code=False)\n"
    )
    assert unsafe(tmp_path / "a.py") == ["pickle", "eval", "trust_remote_code"]


@pytest.mark.parametrize("name", ["CHANGELOG.md", "LICENSE", "README.md", ".ci/run", "scripts/test", "scripts/mutate"])
def test_the_repository_has(name):
    assert (ROOT / name).stat().st_size > 0


def test_the_changelog_has_this_version():
    import jaxpost

    assert f"## {jaxpost.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
