"""scripts/quickstart on a tiny model, without installing: every step, its table, and what it refuses."""

import importlib.util
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

SCRIPTS = Path(__file__).parents[1] / "scripts"
FLAGS = ("--steps", "2", "--heldout", "9", "--train-rows", "40", "--max-length", "768")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=1024)


def quickstart(*flags):
    command = [sys.executable, str(SCRIPTS / "quickstart"), "--python", sys.executable, *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def run(tmp_path_factory, model):
    output = tmp_path_factory.mktemp("quickstart") / "out"
    done = quickstart("--model", model, "--output", output, "--task-seed", 5, "--seed", 3, *FLAGS)
    assert done.returncode == 0, done.stderr
    return output, done


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_table_has_both_models_on_both_halves(run):
    output, done = run
    lines = done.stdout.splitlines()
    assert lines[0] == "task seed 5, run seed 3, bootstrap seed 0"
    numbers = r"\s+\d+\.\d %  \[ *\d+\.\d, +\d+\.\d\]  +(\d+) questions, \d+ schemas"
    for i, label in enumerate(("base", "tuned")):
        for j, (half, count) in enumerate((("new questions", 5), ("new schemas", 4), ("both", 9))):
            match = re.fullmatch(f"{label} +{half}{numbers}", lines[1 + 3 * i + j])
            assert match and int(match[1]) == count, lines
    assert f"adapter     {output / 'adapter'}" in lines and f"answers     {output / 'tuned.jsonl'}" in lines
    assert f"card        {output / 'adapter' / 'README.md'}" in lines


def test_progress_names_each_step_and_its_time(run):
    _, done = run
    steps = re.findall(r"^=== (\w+)$", done.stderr, re.MULTILINE)
    assert steps == ["task", "doctor", "base", "training", "tuned"]
    assert re.search(
        r"^\d+ s: task \d+ s, doctor \d+ s, base \d+ s, training \d+ s, tuned \d+ s$", done.stderr, re.MULTILINE
    )
    assert "base: 9/9 questions answered" in done.stderr and "sft step 2/2" in done.stderr
    assert "Rows as the model sees them" in done.stderr and "0 errors" in done.stderr


def test_both_models_get_the_same_questions_and_everything_is_kept(run):
    output, _ = run
    base, tuned = records(output / "base.jsonl"), records(output / "tuned.jsonl")
    asked = [[(r["split"], r["schema"], r["question"], r["sql"]) for r in part] for part in (base, tuned)]
    assert asked[0] == asked[1] and len(base) == 9
    assert [r["split"] for r in base] == ["heldout_question"] * 5 + ["heldout_schema"] * 4
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "metrics.jsonl"} <= {
        file.name for file in (output / "adapter").iterdir()
    }
    assert len(records(output / "adapter" / "metrics.jsonl")) == 2
    assert len(records(output / "task" / "train.jsonl")) == 40


def test_the_seeds_reach_task_and_training(run):
    output, _ = run
    saved = (output / "adapter" / "run.yaml").read_text()
    assert re.search(r"^seed: 3$", saved, re.MULTILINE) and re.search(r"^steps: 2$", saved, re.MULTILINE)
    assert re.search(r"^max_length: 768$", saved, re.MULTILINE)
    again = output.parent / "task"
    make = [sys.executable, SCRIPTS / "make_sql_task.py", "--seed", "5", "--train-rows", "40", "--heldout-rows", "5"]
    subprocess.run([*make, "--output", again], check=True, stdout=subprocess.DEVNULL)
    for name in ("train", "heldout_question", "heldout_schema"):
        assert (again / f"{name}.jsonl").read_bytes() == (output / "task" / f"{name}.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--steps", 0), "`--steps` must be at least 1; got 0."),
        (("--heldout", 1), "`--heldout` must be at least 2; got 1."),
        (("--train-rows", 0), "`--train-rows` must be at least 1; got 0."),
        (("--output", "{full}"), "must be a new or empty folder"),
    ],
)
def test_wrong_options_are_refused_and_leave_nothing(tmp_path, flags, said):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    flags = [str(flag).replace("{full}", str(tmp_path / "full")) for flag in flags]
    done = quickstart("--output", tmp_path / "out", *flags)
    assert done.returncode == 2 and said in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full"]


def test_a_step_that_fails_ends_the_run(tmp_path):
    done = quickstart("--model", tmp_path / "no model", "--output", tmp_path / "out", *FLAGS)
    assert done.returncode in (1, 2) and done.stderr.splitlines()[-1].startswith("quickstart: error: exit status")
    assert "=== training" not in done.stderr


@pytest.fixture(scope="module")
def evaluation():
    spec = importlib.util.spec_from_file_location("evaluate_sql", SCRIPTS / "evaluate_sql.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(schema, correct, **more):
    return {"schema": schema, "correct": correct, "split": "heldout_schema", "family": "count"} | more


def test_intervals_draw_whole_schemas(evaluation):
    """As many questions in few schemas that agree tell less than in many: the interval is wider."""
    rng = random.Random(0)
    few = [record(f"s{i % 6}", i % 6 < 3) for i in range(120)]
    many = [record(f"s{i}", rng.random() < 0.5) for i in range(120)]
    widths = [high - low for low, high in map(evaluation.interval, (few, many))]
    assert widths[0] > 2 * widths[1] and 0.14 < widths[1] < 0.22  # 2 * 1.96 * sqrt(0.25 / 120) = 0.18
    low, high = evaluation.interval(few)
    assert low < 0.5 < high


def test_the_halves_and_families_are_counted(evaluation):
    first = [record("a", i < 3, split="heldout_question") for i in range(4)]
    second = [record("b", i < 1, family="top") for i in range(5)]
    lines = evaluation.table("base", first + second)
    assert [re.search(r"(\d+\.\d) %", line)[1] for line in lines] == ["75.0", "20.0", "44.4"]
    worse = [row | {"correct": False} for row in first + second]
    assert [line.split() for line in evaluation.families(worse, first + second)] == [
        ["count", "0", "->", "3", "of", "4"],
        ["top", "0", "->", "1", "of", "5"],
    ]


def test_answers_are_scored_by_execution(evaluation, run):
    """The gold query as an answer counts, a fenced one too, another does not."""
    output, _ = run
    rows = evaluation.read_questions(output / "task", 8)
    texts = [row["sql"] for row in rows]
    assert all(r["correct"] for r in evaluation.scored(rows, texts, output / "task"))
    assert all(r["correct"] for r in evaluation.scored(rows, [f"```sql\n{t};\n```" for t in texts], output / "task"))
    assert not any(r["correct"] for r in evaluation.scored(rows, ["SELECT 1"] * 8, output / "task"))
