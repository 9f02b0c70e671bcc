"""`--resume`: a run that was interrupted ends as one that was not, bit for bit; what is not the run's is refused."""

import dataclasses
import json
import os
import shutil
import typing

import jax
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file
from sft_runs import SMALL, Run, interrupted, resume, run_command, write_clock, write_rows

from jaxpost.core.config import load_config
from jaxpost.core.options import options, union_members
from jaxpost.recipes import sft as recipe
from jaxpost.recipes import sft_resume, sft_setup
from jaxpost.recipes.sft_config import SftConfig
from jaxpost.recipes.sft_fingerprints import OPTIONS
from jaxpost.recipes.sft_resume import FREE, ROUNDING
from jaxpost.recipes.sft_setup import prepare
from jaxpost.train.checkpoint import read_meta, restore, steps_of

TEN = ("--steps", "10", "--batch-size", "2", "--max-length", "64", "--dtype", "float32", "--learning-rate", "1e-2")
SAVED = ("--save-steps", "5", "--save-total-limit", "9")
TIMES = ("tokens_per_s", "eval_runtime")
KNOWN = {option.name: option for option in options(SftConfig)}


def untimed(run: Run):
    return [{k: v for k, v in record.items() if k not in TIMES} for record in run.records]


def last_state(run: Run):
    """Every array of the run's last checkpoint."""
    config = load_config(SftConfig, [], run.out / "run.yaml")
    root = run.out / "checkpoints"
    state = restore(root / str(steps_of(root)[-1]), prepare(config).state)
    plain = dataclasses.replace(state, key=jax.random.key_data(state.key))
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(plain)]


KINDS = {
    "adapter": ("--lora.dropout", "0.2", "--neftune-alpha", "5"),
    "unpacked": ("--packing", "off", "--lora.dropout", "0.2", "--micro-batch-size", "1"),
    "full": ("--full", "--weight-decay", "0.1", "--schedule", "cosine"),
    "evaluated": ("--eval-data", "{rows}", "--eval-steps", "2", "--keep", "best"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_R4_ten_steps_are_five_and_five(kind, sft, rows, tmp_path):
    """Weights, optimizer, key, order of the rows, records and results.

    Mutation: jaxpost/recipes/sft_resume.py: `state=restore(start.folder, release(setup.state))` -> `state=setup.state`
    Mutation: jaxpost/recipes/sft.py: `            num_tokens=start.counters.num_tokens,` -> `            num_tokens=0,`
    Mutation: jaxpost/train/metrics.py: `if record["step"] <= step]` -> `]`
    """
    flags = [flag.format(rows=rows) for flag in KINDS[kind]]
    whole = sft(*flags, *SAVED, base=TEN)
    assert whole.status == 0 and [5, 10] == [s for s in steps_of(whole.out / "checkpoints") if s % 5 == 0]
    again = resume(interrupted(whole, tmp_path / "run", 5))
    assert again.status == 0, again.stderr
    assert f"goes on from {tmp_path / 'run' / 'checkpoints' / '5'}" in again.stderr
    assert again.digest() == whole.digest() and again.digest()
    assert untimed(again) == untimed(whole)
    assert last_state(again) == last_state(whole)
    for name in ("train_results.json", "run.yaml"):
        assert (again.out / name).read_text().replace(str(again.out), str(whole.out)) == (whole.out / name).read_text()


def test_R4_the_patience_that_was_used_up_stays_used_up(sft, rows, tmp_path):
    """No evaluation is better by 99: those of steps 4, 6 and 8 are waited for, the first before the kill.

    Mutation: jaxpost/recipes/sft.py: `            counters=start.counters,` -> `            counters=None,`
    """
    flags = ("--eval-data", str(rows), "--eval-steps", "2", "--early-stopping-patience", "3")
    whole = sft(*flags, "--early-stopping-threshold", "99", *SAVED, base=TEN)
    again = resume(interrupted(whole, tmp_path / "run", 5))
    assert whole.records[-1]["step"] == again.records[-1]["step"] == 8, again.stderr
    assert untimed(again) == untimed(whole) and again.digest() == whole.digest()


def test_R4_a_template_that_writes_the_day_writes_that_of_the_start(sft, rows, models, tmp_path):
    """Also where another day has come; another one that is given is other data.

    Mutation: jaxpost/recipes/sft_resume.py: `config.date or started or` -> `config.date or`
    Mutation: jaxpost/recipes/sft_setup.py: `        date=config.date,` -> ``
    """
    flags = ("--chat-template", str(write_clock(tmp_path / "clock.jinja")), *SAVED)
    whole = sft("--date", "2025-01-31", *flags, base=TEN)
    half = interrupted(whole, tmp_path / "run", 5)
    argv = ("sft", "--model", str(models()), "--data", str(rows), *flags, *TEN, "--resume")
    refused = run_command(half.out, (*argv, "--date", "2025-02-01"))
    assert refused.status == 2 and "`--data` must hold what the run was started on" in refused.stderr
    again = run_command(half.out, argv)
    assert again.status == 0 and again.digest() == whole.digest(), again.stderr
    assert "date: '2025-01-31'" in (again.out / "run.yaml").read_text()


def test_R10_a_damaged_checkpoint_is_named_and_the_one_before_it_gives_the_same(sft, tmp_path):
    """Mutation: jaxpost/train/checkpoint.py: `        wrong = damage(folder)` -> `        wrong = None`"""
    whole = sft("--save-steps", "3", "--save-total-limit", "2", base=TEN)
    assert steps_of(whole.out / "checkpoints") == [9, 10]
    broken = interrupted(whole, tmp_path / "run", 10)
    file = next(path for path in (broken.out / "checkpoints" / "10" / "state").rglob("*") if path.is_file())
    file.write_bytes(file.read_bytes()[:-1])
    again = resume(broken)
    assert again.status == 0 and f"{broken.out / 'checkpoints' / '10'} is not used: " in again.stderr
    assert file.name in again.stderr and again.digest() == whole.digest() and untimed(again) == untimed(whole)


def test_with_no_checkpoint_it_starts_at_0(sft, rows, models, tmp_path):
    """In a new folder and after a kill before the first checkpoint: nothing is there twice.

    Mutation: jaxpost/recipes/sft_resume.py: `kept = start.step if start.meta is not None else -1` -> `kept = start.step`
    """  # noqa: E501
    flags = ("--eval-data", str(rows), "--save-steps", "8", "--save-total-limit", "1")
    whole = sft(*flags, base=TEN)
    argv = ("sft", "--model", str(models()), "--data", str(rows), *TEN, *flags)
    fresh = run_command(tmp_path / "fresh", (*argv, "--resume"))
    before = resume(interrupted(whole, tmp_path / "before", 0))
    for run in (fresh, before):
        assert run.status == 0, run.stderr
        assert run.digest() == whole.digest() and untimed(run) == untimed(whole)
    assert "starts at step 0" in before.stderr


def test_checkpoints_that_are_all_damaged_are_refused_and_kept(sft, tmp_path):
    """Each is named, nothing is removed; without them the run starts at 0, as the message says.

    Mutation: jaxpost/recipes/sft_resume.py: `    if folder is None and damaged:` -> `    if False:`
    """
    whole = sft(*SAVED, base=TEN)
    half = interrupted(whole, tmp_path / "run", 10)
    for step in (5, 10):
        (half.out / "checkpoints" / str(step) / "meta.json").write_text("{}")
    before = {path: path.read_bytes() for path in half.out.rglob("*") if path.is_file()}
    again = resume(half)
    assert again.status == 2 and again.stderr.count("\n") == 1 and str(half.out / "checkpoints") in again.stderr
    assert all(f"{step} is not used: meta.json has " in again.stderr for step in (5, 10))
    assert {path: path.read_bytes() for path in half.out.rglob("*") if path.is_file()} == before
    shutil.rmtree(half.out / "checkpoints")
    anew = resume(half)
    assert anew.status == 0 and "starts at step 0" in anew.stderr and anew.digest() == whole.digest()


def test_of_a_finished_run_it_ends_with_0(sft):
    """Nothing is loaded, nothing written.

    Mutation: jaxpost/recipes/sft_resume.py: `return Start(finished=True, ` -> `return Start(`
    """
    run = sft("--save-steps", "none", base=TEN)
    before = {path: path.stat().st_mtime_ns for path in run.out.rglob("*")}
    assert not (run.out / "checkpoints").exists()
    again = resume(run)
    assert again.status == 0 and "finished" in again.stderr and again.compiled == {}
    assert {path: path.stat().st_mtime_ns for path in run.out.rglob("*")} == before
    assert resume(run, "--steps", "11").status == 2


def test_an_output_that_holds_a_run_is_refused_without_resume_and_the_hint_is_there(sft):
    """Mutation: jaxpost/recipes/sft_resume.py: `if not config.resume and run_yaml.is_file():` -> `if False:`"""
    run = sft("--save-steps", "none", base=TEN)
    again = run_command(run.out, ("sft", "--config", str(run.out / "run.yaml")))
    assert again.status == 2 and "not empty" in again.stderr and "--resume" in again.stderr
    assert again.stderr.count("\n") == 1


def test_a_folder_that_holds_no_run_is_refused(tmp_path, models, rows):
    """Mutation: jaxpost/recipes/sft_resume.py: `        if not _is_unused(config.output):` -> `        if False:`"""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    argv = ("sft", "--model", str(models()), "--data", str(rows), *TEN, "--resume")
    run = run_command(tmp_path / "out", argv)
    assert run.status == 2 and "run.yaml" in run.stderr and run.stderr.count("\n") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def another(option) -> str:
    """A value of the option that is neither its default nor what the run below has."""
    kinds = union_members(option.annotation)
    literals = [m for m in kinds if typing.get_origin(m) is typing.Literal]
    if literals:
        values = [v for v in typing.get_args(literals[0]) if v not in (option.default, "auto", "float32", "none")]
        return values[0] if values else ""
    if bool in kinds:
        return "true"
    texts = {"chat_template": "chatml", "lora.targets": "q_proj", "warmup_ratio": "0.5", "lora.dropout": "0.5"}
    return texts.get(option.name, "7")


STAYS = sorted(set(KNOWN) - FREE - ROUNDING - set(OPTIONS))
# Refused on their own, whether a run goes on or not; `dtype` has a value that is not; the rest has needs of its own.
IMPOSSIBLE = {"lora.variant", "quantize", "double_quant"}
NEEDS = {
    "epochs": ("--steps", "none"),
    "early_stopping_threshold": ("--early-stopping-patience", "3"),
}


@pytest.mark.parametrize("name", sorted(set(STAYS) - IMPOSSIBLE))
def test_R8_an_option_that_changes_the_result_must_stay(name, sft, rows, tmp_path):
    """Every option that is not named as free, one by one: one line that names it, before anything is loaded.

    Mutation: jaxpost/recipes/sft_resume.py: `if name not in ROUNDING:` -> `if False:`
    """
    run = sft("--eval-data", str(rows), "--save-steps", "5", base=TEN)
    again = resume(run, KNOWN[name].flag, another(KNOWN[name]), *NEEDS.get(name, ()))
    assert again.status == 2 and again.stderr.count("\n") == 1, again.stderr
    named = {KNOWN[name].flag, *(flag for flag in NEEDS.get(name, ()) if flag.startswith("--"))}
    assert any(f"`{flag}` must stay " in again.stderr for flag in named), again.stderr
    assert steps_of(run.out / "checkpoints") == [5, 10]


def test_the_lists_of_options_name_options():
    assert (FREE | ROUNDING | set(OPTIONS)) <= set(KNOWN)
    assert not FREE & ROUNDING and {"learning_rate", "seed", "batch_size", "lora.rank", "eval_steps"} <= set(STAYS)


def test_free_options_may_change(sft, tmp_path):
    whole = sft("--save-steps", "5", base=TEN)
    half = interrupted(whole, tmp_path / "run", 5)
    again = resume(
        half, "--save-steps", "2", "--save-total-limit", "3", "--report-to", "none", "--max-skipped-steps", "3"
    )
    assert again.status == 0 and again.digest() == whole.digest() and untimed(again) == untimed(whole)
    assert steps_of(again.out / "checkpoints") == [6, 8, 10]


def test_R9_other_devices_go_on_in_the_same_order(sft, tmp_path):
    """One device to a mesh and back: the same rows, records equal to rounding, and that is said.

    Mutation: jaxpost/recipes/sft_resume.py: `ROUNDING = {"mesh", "remat"}` -> `ROUNDING = {"remat"}`
    """  # noqa: E501
    one, mesh = sft(*SAVED, base=TEN), sft(*SAVED, "--mesh", "data=2,tensor=4", base=TEN)
    for run, flag in ((one, "data=2,tensor=4"), (mesh, "none")):
        again = resume(interrupted(run, tmp_path / flag, 5), "--mesh", flag)
        assert again.status == 0, again.stderr
        assert "--mesh " in again.stderr and "equal up to rounding" in again.stderr
        for name in ("num_tokens", "trained_tokens", "epoch", "learning_rate", "step"):
            assert again.column(name) == one.column(name)
        np.testing.assert_allclose(again.column("loss"), one.column("loss"), rtol=2e-4)
        for name, weight in one.weights.items():
            np.testing.assert_allclose(again.weights[name], weight, atol=5e-4, err_msg=name)
    checkpoint = one.out / "checkpoints" / "5"
    assert read_meta(checkpoint).config["mesh"] is None


def test_the_micro_batch_that_a_run_chose_is_kept(sft, tmp_path, monkeypatch):
    """With more memory than before a larger one would fit, and would not give the same bits.

    Mutation: jaxpost/recipes/sft.py: `compile_steps(setup, _say, start.meta and start.meta.micro_batch_size)` -> `compile_steps(setup, _say)`
    """  # noqa: E501
    whole = sft(*SAVED, "--micro-batch-size", "1", "--lora.dropout", "0.3", base=TEN)
    half = interrupted(whole, tmp_path / "run", 5)
    text = (half.out / "run.yaml").read_text()
    assert "micro_batch_size: 1\n" in text
    (half.out / "run.yaml").write_text(text.replace("micro_batch_size: 1\n", "micro_batch_size: null\n"))
    again = resume(half)
    assert again.status == 0 and again.digest() == whole.digest()
    other = resume(interrupted(whole, tmp_path / "other", 5), "--micro-batch-size", "2")
    assert other.status == 0 and "--micro-batch-size 2 instead of 1: results are equal up to rounding" in other.stderr
    assert not any("up to rounding" in run.stderr for run in (whole, again))


def test_a_smaller_micro_batch_than_the_checkpoints_is_said(sft, tmp_path, monkeypatch):
    """Less memory than before: the run goes on, not bit for bit.

    Mutation: jaxpost/recipes/sft_setup.py: `most not in (None, micro):` -> `most not in (None, micro, 2):`
    """
    whole = sft(*SAVED, base=TEN)
    less = lambda programs, sizes: compile_largest(programs, sizes[1:])  # noqa: E731
    compile_largest = sft_setup.compile_largest
    monkeypatch.setattr(sft_setup, "compile_largest", less)
    again = resume(interrupted(whole, tmp_path / "run", 5))
    line = "--micro-batch-size 1 instead of 2, as no more fits: results are equal up to rounding\n"
    assert again.status == 0 and line in again.stderr


def test_other_packages_than_the_checkpoints_are_said(sft, tmp_path, monkeypatch):
    """One line that names those that compute; none where they are the same.

    Mutation: jaxpost/recipes/sft_resume.py: `*_other_packages(meta.versions)]` -> `]`
    """
    whole = sft(*SAVED, base=TEN)
    now = {name: sft_resume.version(name) for name in sft_resume.PACKAGES}
    assert "up to rounding" not in resume(interrupted(whole, tmp_path / "same", 5)).stderr
    monkeypatch.setattr(sft_resume, "version", lambda name: {**now, "optax": "9", "numpy": "9"}[name])
    other = resume(interrupted(whole, tmp_path / "other", 5))
    assert other.status == 0 and other.digest() == whole.digest()
    assert f"optax 9 instead of {now['optax']}: results are equal up to rounding\n" in other.stderr
    assert "numpy" not in other.stderr


@pytest.mark.parametrize("name", ["model", "data", "eval_data", "adapter"])
def test_L21_another_base_or_other_rows_are_refused(name, sft, rows, models, tmp_path):
    """The content counts: a file of the same rows elsewhere will do, other ones under the same name will not.

    Mutation: jaxpost/recipes/sft_resume.py: `    sft_fingerprints.check(` -> `    print(`
    Mutation: jaxpost/hub/fingerprint.py: `        digest.update(file.read(size if whole else BLOCK))` -> `        pass`
    Mutation: jaxpost/recipes/sft_fingerprints.py: `found["eval_data"] = setup.evaluation.fingerprint` -> `pass`
    Mutation: jaxpost/recipes/sft_fingerprints.py: `found["adapter"] = of_tree(setup.spec)` -> `pass`
    """
    adapter = tiny.make_adapter(tmp_path / "adapter", models(), rank=4, alpha=8)
    whole = sft(*SAVED, "--eval-data", str(rows), "--adapter", str(adapter), base=TEN)
    half = interrupted(whole, tmp_path / "run", 5)
    same = {"model": shutil.copytree(models(), tmp_path / "model"), "adapter": shutil.copytree(adapter, tmp_path / "a")}
    text = rows.read_text().splitlines(keepends=True)
    same["data"] = same["eval_data"] = write_rows(tmp_path / "same.jsonl", [json.loads(line) for line in text])
    other = dict(same)
    other["model"] = models(seed=1)
    other["data"] = other["eval_data"] = tmp_path / "other.jsonl"
    other["data"].write_text("".join([text[1], text[0], *text[2:]]))
    other["adapter"] = tiny.make_adapter(tmp_path / "b", models(), rank=4, alpha=9)
    refused = resume(half, KNOWN[name].flag, str(other[name]))
    assert refused.status == 2 and f"`{KNOWN[name].flag}`" in refused.stderr, refused.stderr
    assert refused.stderr.count("\n") == 1 and not (half.out / "train_results.json").exists()
    again = resume(half, KNOWN[name].flag, str(same[name]))
    assert again.status == 0 and again.digest() == whole.digest(), again.stderr


def test_L21_a_checkpoint_of_an_adapter_holds_no_base_weight(sft, models):
    """Factors, two moments and a few numbers.

    Mutation: jaxpost/train/checkpoint.py: `fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}` -> `fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)} | {"base": jax.numpy.zeros(9)}`
    """  # noqa: E501
    run = sft(*SAVED, base=TEN)
    arrays = json.loads((run.out / "checkpoints" / "5" / "arrays.json").read_text())
    factors = [name for name in arrays if name.startswith("trainable/")]
    assert factors and all(name.endswith(("lora_A", "lora_B")) for name in factors)
    moments = [f"opt_state/0/{m}/{name.removeprefix('trainable/')}" for name in factors for m in ("mu", "nu")]
    rest = set(arrays) - set(factors) - set(moments)
    assert set(moments) < set(arrays)
    assert all(arrays[name] in ("int32[]", "uint32[2]") for name in rest), rest
    base = sum(tensor.nbytes for tensor in load_file(models() / "model.safetensors").values())
    trained = sum(weight.nbytes for weight in run.weights.values())
    state = (run.out / "checkpoints" / "5" / "state").rglob("*")  # beside it are tables of names
    files = [file.stat().st_size for file in state if file.is_file()]
    assert sum(files) < 3 * trained + 2**15 and base > 2**15


def test_a_run_from_python_without_a_main_thread_saves_as_well(tmp_path, models, rows, monkeypatch):
    """Where no signal can be caught the run goes its way; and one in a thread is no error."""
    import threading

    argv = ["--model", str(models()), "--data", str(rows), *TEN, "--output", str(tmp_path / "out"), "--save-steps", "4"]
    thread = threading.Thread(target=lambda: recipe.run(load_config(SftConfig, argv)))
    thread.start()
    thread.join()
    assert (tmp_path / "out" / "train_results.json").exists() and steps_of(tmp_path / "out" / "checkpoints") == [8, 10]


def test_records_are_on_the_disk_before_their_checkpoint_has_its_name(models, rows, tmp_path, monkeypatch):
    """All of them: as many bytes as the file has at that moment.

    Mutation: jaxpost/train/metrics.py: `        os.fsync(self._file.fileno())` -> `        pass`
    Mutation: jaxpost/recipes/sft.py: `            reporters.sync()` -> `            pass`
    """
    records, flushed, renamed = tmp_path / "out" / "metrics.jsonl", [0], []
    fsync, replace = os.fsync, os.replace

    def flushing(handle):
        if records.exists() and os.path.samestat(os.fstat(handle), records.stat()):
            flushed.append(os.fstat(handle).st_size)
        fsync(handle)

    def renaming(source, target):
        if os.path.basename(os.path.dirname(target)) == "checkpoints":
            renamed.append((os.path.basename(target), records.stat().st_size, flushed[-1]))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushing)
    monkeypatch.setattr(os, "replace", renaming)
    run = run_command(
        tmp_path / "out", ("sft", "--model", str(models()), "--data", str(rows), *TEN, "--save-steps", "4")
    )
    assert run.status == 0 and [step for step, *_ in renamed] == ["4", "8", "10"]
    assert all(size == safe > 0 for _, size, safe in renamed), renamed


@pytest.mark.parametrize("name", ["run", "run[1]", "run*"])
def test_leftovers_of_a_kill_are_removed_and_nothing_else(name, sft, tmp_path):
    """What jaxpost names so itself, in the folder of the run; hidden files and folders of others stay, wherever.

    Mutation: jaxpost/recipes/sft_resume.py: `    remove_leftovers(config.output)` -> `    pass`
    Mutation: jaxpost/recipes/sft_resume.py: `    discard_after(checkpoints(config), start.step)` -> `    pass`
    Mutation: jaxpost/core/files.py: `[item for item in folder.iterdir() if is_leftover(item.name)]` -> `[*folder.iterdir()]`
    Mutation: jaxpost/core/files.py: `re.escape(_ASIDE) + "[a-z0-9_]{8}"` -> `".*[a-z0-9_]{8}"`
    """  # noqa: E501
    half = interrupted(sft(*SAVED, base=TEN), tmp_path / name, 5)
    made = [half.out / ".jaxpost-aside-ab_d3f9h", half.out / ".jaxpost-aside-00000000"]
    folders = [half.out / ".jaxpost-aside-filling_", half.out / "checkpoints" / ".jaxpost-aside-1b4hx_9c"]
    mine = theirs(half.out) + [half.out / ".gitignore", half.out / ".settings", half.out / ".run.yaml.ab_d3f9h"]
    for file in made:
        file.write_text("half")
    for folder in [*folders, *mine]:
        (folder / "inside").mkdir(parents=True)
    assert resume(half).status == 0
    assert not any(path.exists() for path in [*made, *folders]) and all((path / "inside").is_dir() for path in mine)


def theirs(out):
    """Hidden folders beside an output folder that are nobody's business."""
    names = (
        ".{}.settings",
        ".{}.archived",
        ".{}.abcdefgh",
        ".jaxpost-aside-k2j3ab_0",
        ".run1.abcdefgh",
        ".runx.backup_1",
    )
    return [out.with_name(name.format(out.name)) for name in names]


@pytest.mark.parametrize("name", ["fresh", "run[1]", "run*"])
def test_hidden_folders_beside_the_output_stay(name, models, rows, tmp_path):
    """A start removes nothing outside its own folder, and fills that from inside."""
    out = tmp_path / name
    for folder in theirs(out):
        folder.mkdir()
        (folder / "thesis.tex").write_text("mine")
    assert run_command(out, ("sft", "--model", str(models()), "--data", str(rows), *SMALL)).status == 0
    assert all((folder / "thesis.tex").read_text() == "mine" for folder in theirs(out))
    assert len(list(tmp_path.iterdir())) == len({*theirs(out), out}) and not any(
        p.name[0] == "." for p in out.iterdir()
    )
