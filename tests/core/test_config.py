"""Configuration: defaults, YAML, flags, help and the way back to YAML."""

import datetime
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
import yaml

from jaxpost.core.config import dump_config, load_config, option
from jaxpost.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Lora:
    rank: int = option(16, "rows of A and columns of B", range="[1, inf)")
    alpha: float = option(32.0, "scaling is alpha / rank")
    dropout: float = option(0.1, "on the adapter's input", range="[0, 1)")
    targets: tuple[str, ...] = option(("all-linear",), "modules that get an adapter")


@dataclass(frozen=True, kw_only=True)
class Mesh:
    data: int = 1
    fsdp: int = 1


@dataclass(frozen=True, kw_only=True)
class Run:
    model: str = option(help="folder of the model to start from")
    data: tuple[Path, ...] = option((), "files of rows")
    output: Path | None = option(None, "folder to write")
    steps: int | None = option(None, "optimizer steps", unit="steps")
    seed: int = 17
    learning_rate: float | Literal["auto"] = "auto"
    quantize: Literal["none", "nf4"] = "nf4"
    packing: Literal["on", "off"] = "on"
    template: str | None = None
    day: datetime.date | None = None
    double_quant: bool = True
    full: bool = option(True, "train all weights")
    lora: Lora = Lora(alpha=8.0)
    mesh: Mesh = Mesh()


def load(*argv: str, text: str | None = None, folder: Path | None = None) -> Run:
    if text is not None and folder is not None:
        (folder / "run.yaml").write_text(text, encoding="utf-8")
        argv = ("--config", str(folder / "run.yaml"), *argv)
    return load_config(Run, argv, command="sft")


def refusal(*argv: str, **yaml_text) -> str:
    with pytest.raises(InputError) as caught:
        load(*argv, **yaml_text)
    message = str(caught.value)
    assert "\n" not in message
    return message


COMMON = "seed: 0\nsteps: 0\n"
SPELLINGS = {
    "underscores": "learning_rate: 2e-5\ndouble_quant: off\nfull: no\npacking: off\nlora:\n  dropout: 0\n",
    "dashes": "learning-rate: 2e-5\ndouble-quant: false\nfull: False\npacking: no\nlora: {dropout: 0.0}\n",
    "dotted": "learning-rate: 2.0E-05\ndouble_quant: No\nfull: OFF\npacking: 'off'\nlora.dropout: 0\n",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_C01_numbers_and_switches_in_yaml(spelling, tmp_path):
    """YAML 1.1 reads 2e-5 as a string and off as a boolean; zero and false are values, not absences.

    Mutation: jaxpost/core/config.py: `elif prefix + name in values:` -> `elif values.get(prefix + name):`
    """
    config = load("--model", "m", text=COMMON + SPELLINGS[spelling], folder=tmp_path)
    assert config.learning_rate == 2e-5 and isinstance(config.learning_rate, float)
    assert (config.seed, config.steps, config.lora.dropout) == (0, 0, 0.0)
    assert config.double_quant is False and config.full is False
    assert config.packing == "off"
    assert config.lora == Lora(alpha=8.0, dropout=0.0), "the rest keeps the section's own defaults"


@pytest.mark.parametrize("spelling", ["2026-02-28", "'2026-02-28'", '"2026-02-28"'])
def test_a_day_in_yaml(spelling, tmp_path):
    """YAML 1.1 reads a bare one as a timestamp.

    Mutation: jaxpost/core/yaml_file.py: `"timestamp", ` -> ``
    """
    assert load(text=f"model: m\nday: {spelling}\n", folder=tmp_path).day == datetime.date(2026, 2, 28)


def test_C01_flags_keep_zero_and_false(tmp_path):
    """A zero or a switch turned off on the command line wins over YAML.

    Mutation: jaxpost/core/flags.py: `value = "false"` -> `value = "true"`
    """
    text = "seed: 5\nfull: yes\nlora: {dropout: 0.5}\n"
    config = load("--model=m", "--seed=0", "--no-full", "--lora.dropout", "0", text=text, folder=tmp_path)
    assert (config.seed, config.full, config.lora.dropout) == (0, False, 0.0)


def test_flags_override_yaml_and_yaml_the_defaults(tmp_path):
    text = "model: from-yaml\nsteps: 7\nlora:\n  rank: 4\n  targets: [q_proj, v_proj]\n"
    config = load("--lora.rank", "2", text=text, folder=tmp_path)
    assert config == replace(
        Run(model="from-yaml"), steps=7, lora=Lora(rank=2, alpha=8.0, targets=("q_proj", "v_proj"))
    )


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        (["--data", "a.jsonl", "--data", "b.jsonl"], "data", (Path("a.jsonl"), Path("b.jsonl"))),
        (["--data", "a.jsonl,b.jsonl"], "data", (Path("a.jsonl"), Path("b.jsonl"))),
        (["--steps", "none"], "steps", None),
        (["--seed", "-3"], "seed", -3),
        (["--seed", "1", "--seed", "2"], "seed", 2),
        (["--steps", "1e3"], "steps", 1000),
        (["--learning_rate", "auto"], "learning_rate", "auto"),
        (["--learning-rate", "1"], "learning_rate", 1.0),
        (["--full", "false"], "full", False),
        (["--full"], "full", True),
        (["--packing", "false"], "packing", "off"),
        (["--quantize", "none"], "quantize", "none"),
        (["--template", "none"], "template", None),
        (["--day", "2026-02-28"], "day", datetime.date(2026, 2, 28)),
        (["--mesh", "data=2,fsdp=4"], "mesh", Mesh(data=2, fsdp=4)),
        (["--mesh.fsdp", "4"], "mesh", Mesh(fsdp=4)),
        (["--lora.targets", r"re:.*\.(q|v)_proj{1,1}"], "lora", Lora(alpha=8.0, targets=(r"re:.*\.(q|v)_proj{1,1}",))),
    ],
)
def test_spellings_of_flags(argv, field, value):
    got = getattr(load("--model", "m", *argv), field)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        ([], ["`--model`", "required", "folder of the model"]),
        (["--modle", "x"], ["`--modle`", '"--model"']),
        (["--rank", "3"], ["`--rank`", '"--lora.rank"']),
        (["--lora.rnk=3"], ["`--lora.rnk`", '"--lora.rank"']),
        (["--zzz", "3"], ["`--zzz`", "`jaxpost sft --help`"]),
        (["--seed", "x"], ["`--seed`", "an integer", '"x"', "command line"]),
        (["--seed", "1.5"], ["`--seed`", "an integer", '"1.5"']),
        (["--steps", "many"], ["`--steps`", "an integer or none", '"many"']),
        (["--lora.rank", "0"], ["`--lora.rank`", "be >= 1;", '"0"']),
        (["--lora.rank", "-inf"], ["`--lora.rank`", "an integer"]),
        (["--lora.dropout", "1"], ["`--lora.dropout`", ">= 0 and < 1", '"1"']),
        (["--lora.alpha", "nan"], ["`--lora.alpha`", "a number"]),
        (["--quantize", "nf5"], ["`--quantize`", "none or nf4", '"nf5"', '"nf4"?']),
        (["--output", ""], ["`--output`", "a path"]),
        (["--day", "20260228"], ["`--day`", "a day (YYYY-MM-DD) or none", '"20260228"']),
        (["--day", "2026-02-29"], ["`--day`", "a day (YYYY-MM-DD) or none", '"2026-02-29"']),
        (["--seed"], ["`--seed`", "needs a value"]),
        (["--seed", "--full"], ["`--seed`", "needs a value"]),
        (["--no-full=yes"], ["`--no-full`", "no value"]),
        (["--no-seed"], ["`--no-seed`"]),
        (["stray"], ["`stray`"]),
        (["-x"], ["`-x`"]),
        (["--mesh", "4"], ["`--mesh`", "name=value"]),
        (["--mesh", "rows=4"], ["`--mesh.rows`"]),
        (["--config", "missing.yaml"], ["`--config`", "missing.yaml"]),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(argv, parts):
    message = refusal(*(["--model", "m"] if argv else []), *argv)
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("model: m\nlora:\n  rnk: 3\n", ["`lora.rnk`", "line 3", '"lora.rank"']),
        ("model: m\nrank: 3\n", ["`rank`", "line 2", '"lora.rank"']),
        ("model: m\nseed: 1\nseed: 2\n", ["`seed`", "twice", "line 3"]),
        ("model: m\nmax: 1\nlora: {rank: 1}\nlora.rank: 2\n", ["`lora.rank`", "twice", "line 4"]),
        ("model: m\nlearning-rate: 1\nlearning_rate: 2\n", ["`learning_rate`", "twice", "line 3"]),
        ("model: m\nseed: [1, 2]\n", ["`seed`", "an integer", "line 2"]),
        ("model: m\nseed:\n", ["`seed`", "an integer", "nothing", "line 2"]),
        ("model: m\nday: 2026-02-30\n", ["`day`", "a day (YYYY-MM-DD) or none", "line 2"]),
        ("model: m\nseed: {a: 1}\n", ["`seed.a`", "line 2"]),
        ("model: m\nlora: 3\n", ["`lora`", "line 2"]),
        ("model: m\nlora: [3]\n", ["`lora`", "line 2"]),
        ("model: m\ndata: [[a]]\n", ["`data`", "line 2"]),
        ("model: m\nseed: !!python/name:os.system\n", ["`seed`", "line 2"]),
        ("model: m\n? [a]\n: 1\n", ["a list", "line 2"]),
        ("- model\n", ["key: value", "a list"]),
        ("model: m\n\tseed: 1\n", ["valid YAML", "line 2"]),
        ("model: m\n---\nmodel: n\n", ["valid YAML"]),
        ("model: 'm\n", ["valid YAML"]),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_place(text, parts, tmp_path):
    message = refusal(text=text, folder=tmp_path)
    for part in parts:
        assert part in message, message


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"model: \xff\xfe\n")
    assert "UTF-8" in refusal("--config", str(tmp_path / "run.yaml"))
    assert "directory" in refusal("--config", str(tmp_path)).lower()


def test_empty_files_sections_and_byte_order_marks(tmp_path):
    assert load("--model", "m", text="", folder=tmp_path) == Run(model="m")
    assert load("--model", "m", text="lora:\nmesh: {}\n", folder=tmp_path) == Run(model="m")
    assert load(text="\ufeffmodel: m\r\nseed: 3\r\n", folder=tmp_path) == Run(model="m", seed=3)


def test_a_positional_is_the_subject_of_the_command():
    @dataclass(frozen=True, kw_only=True)
    class Import:
        file: Path = option(help="GGUF file", positional=True)
        output: Path = option(help="folder to write")

    config = load_config(Import, ["model.gguf", "--output", "out"], command="import")
    assert config == Import(file=Path("model.gguf"), output=Path("out"))
    with pytest.raises(InputError, match="unexpected argument `b`"):
        load_config(Import, ["a", "b", "--output", "out"], command="import")
    with pytest.raises(InputError, match="FILE"):
        load_config(Import, ["--output", "out"], command="import")


def test_help_names_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        load_config(Run, ["--help"], command="sft", about="Fine-tunes a model.")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    for line in (
        "--lora.rank INT",
        "--full, --no-full",
        "--packing {on,off}",
        "--data A,B,...",
        "--day YYYY-MM-DD",
        "[required]",
        "[>= 1, default 16]",
        "steps",
    ):
        assert line in text
    assert "[default 8]" in text, "a section's default is the parent's"
    assert "Fine-tunes a model." in text and "lora:" in text


WORDS = [
    *["", "none", "Null", "~", "off", "yes", "2e-5", "0x1f", "1_000", "2020-01-01", "re:a,b", "ü✓"],
    *["a b", " lead", "a: b", "#no", "line\nbreak", "tab\t", "'quoted'", '"', "- dash", "? key", "\x85\u2028"],
    *["{x}", "[y]", "&a", "*b", "!c", "%d", "@e", "`f`", "|", ">", "<<", "="],
]


def random_run(rng: random.Random) -> Run:
    word = lambda: rng.choice(WORDS)  # noqa: E731
    return Run(
        model=word(),
        data=tuple(Path(word() or "x") for _ in range(rng.randrange(3))),
        output=rng.choice([None, Path("none"), Path("a b/c")]),
        steps=rng.choice([None, 0, -5, 10**20]),
        seed=rng.randrange(-9, 9),
        learning_rate=rng.choice(["auto", 0.0, 2e-5, 1e300, 5e-324, float("inf"), 1 / 3]),
        quantize=rng.choice(["none", "nf4"]),
        packing=rng.choice(["on", "off"]),
        template=rng.choice([None, *WORDS]),
        day=rng.choice([None, datetime.date(2026, 1, 31)]),
        double_quant=rng.random() < 0.5,
        full=rng.random() < 0.5,
        lora=Lora(
            rank=rng.randrange(1, 99), dropout=rng.random(), targets=tuple(word() for _ in range(rng.randrange(4)))
        ),
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_dumped_configuration_loads_back_equal(seed, tmp_path):
    rng = random.Random(seed)
    for _ in range(60):
        config = random_run(rng)
        assert load(text=dump_config(config), folder=tmp_path) == config


def test_a_dumped_configuration_means_the_same_to_any_yaml_reader():
    config = Run(model="m", learning_rate=2e-5, seed=0, double_quant=False, packing="off")
    read = yaml.safe_load(dump_config(config))
    assert read["learning_rate"] == 2e-5 and read["seed"] == 0 and read["double_quant"] is False
    assert read["packing"] == "off" and read["quantize"] == "nf4" and read["lora"]["alpha"] == 8.0
    assert read["steps"] is None and read["lora"]["targets"] == ["all-linear"]
