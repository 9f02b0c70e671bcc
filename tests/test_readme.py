"""The README tells the truth: its marked examples run, its commands exist, its tree is the tree.

A fenced block right after the line `<!-- run -->` is run, in order, one interpreter or shell each, all in one
folder that is empty at first.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from jaxpost.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"<!-- run -->\n```(?P<language>python|bash)\n(?P<code>.*?)```", re.DOTALL)


def test_the_marked_examples_run(tmp_path):
    shell = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    for block in BLOCK.finditer(README):
        command = [*shell[block["language"]], block["code"]]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{block['code']}\n{done.stdout}{done.stderr}"


def test_every_command_in_the_readme_exists():
    named = set(re.findall(r"(?:`|\n\s*)jaxpost ([a-z]+)(?![\w-])", README))
    assert named
    assert named <= set(COMMANDS), named - set(COMMANDS)


def test_the_layout_is_that_of_the_tree():
    done = subprocess.run([sys.executable, ROOT / "scripts" / "layout", "--print"], capture_output=True, text=True)
    assert done.stdout and done.stdout in README, "run ./scripts/layout"
