"""`jaxpost generate`: prompts, files, a conversation; every option alive; what is wrong is said in one line."""

import datetime
import io
import json

import jax
import pytest
import tiny
from sft_runs import write_clock, write_rows

import jaxpost
from jaxpost.cli import main
from jaxpost.recipes.chat_template import with_chat_template

ROWS = [
    {"prompt": "some text", "answer": 7, "row": "mine"},
    {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the answer"}]},
    {"prompt": [{"role": "user", "content": "hello"}]},
]


DAYS = ("2025-01-31", "2025-01-31", "2025-02-01")
STDOUT = "to stdout"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("model"), "llama", num_hidden_layers=2)


@pytest.fixture
def run(folder, tmp_path, capsys):
    """`run(*flags)`: status, the records, stdout and stderr; `STDOUT` among the flags leaves `--output` out."""

    def call(*flags):
        output = tmp_path / "out" / "made.jsonl"
        output.unlink(missing_ok=True)
        argv = ["generate", "--model", str(folder), "--max-new-tokens", "6", "--dtype", "float32"]
        to = [] if {"--chat", STDOUT} & set(flags) else ["--output", str(output)]
        status = main([*argv, *(flag for flag in flags if flag != STDOUT), *to])
        said = capsys.readouterr()
        records = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
        return status, records, said

    return call


@pytest.fixture
def data(tmp_path):
    return str(write_rows(tmp_path / "rows.jsonl", ROWS))


def test_a_file_of_rows_becomes_a_file_of_completions(run, data, folder):
    """Other columns are copied; those that the record itself uses keep their value under another name.

    Mutation: jaxpost/recipes/generate.py: `return {KEPT + name if name in record else name: value` -> `return {name: value`
    """  # noqa: E501
    status, records, said = run("--data", data, "--n", "2", "--temperature", "1", "--seed", "5")
    assert status == 0 and "6 completions" in said.err
    prompts = [ROWS[0]["prompt"], ROWS[1]["messages"][:1], ROWS[2]["prompt"]]
    model = jaxpost.load(folder, dtype="float32")
    want = jaxpost.generate(model, prompts, n=2, max_new_tokens=6, temperature=1.0, seed=5)
    assert [(r["row"], r["sample"]) for r in records] == [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]
    assert [r["completion"] for r in records] == [c.text for c in want]
    assert [r["finish_reason"] for r in records] == [c.finish_reason for c in want]
    assert [r["num_tokens"] for r in records] == [len(c.tokens) for c in want]
    assert [r["logp"] for r in records] == pytest.approx([sum(c.logps) for c in want], abs=1e-5)
    assert [records[i]["prompt"] for i in (0, 2, 4)] == prompts
    assert records[0]["answer"] == 7 and records[0]["data_row"] == "mine"


def test_prompts_are_raw_text_commas_and_all(run):
    """Mutation: jaxpost/core/flags.py: `if option.verbatim:` -> `if False:`"""
    status, _, said = run(STDOUT, "--prompt", "a, b", "--prompt", "c", "--n", "2")
    assert status == 0
    assert [line for line in said.out.splitlines() if line.startswith("===")] == [
        f"=== prompt {p}, completion {c} (length)" for p in (1, 2) for c in (1, 2)
    ]
    _, records, _ = run("--prompt", "a, b")
    assert [r["prompt"] for r in records] == ["a, b"]


ALIVE = [
    ("--temperature", "1"),
    ("--max-new-tokens", "4"),
    ("--seed", "9", "--temperature", "1"),
    ("--n", "2"),
    ("--dtype", "bfloat16"),
    ("--max-length", "40", "--overlong-prompt", "keep-end"),
]


@pytest.mark.parametrize("flags", ALIVE, ids=lambda flags: flags[0])
def test_R8_an_option_changes_what_is_generated(run, flags):
    """Mutation: jaxpost/recipes/generate.py: `        temperature=config.temperature,` -> `        temperature=0.0,`
    Mutation: jaxpost/recipes/generate.py: `        seed=config.seed,` -> `        seed=0,`
    Mutation: jaxpost/recipes/generate.py: `        n=config.n,` -> `        n=1,`
    Mutation: jaxpost/recipes/generate.py: `load(config.model, dtype=config.dtype)` -> `load(config.model, dtype="float32")`
    Mutation: jaxpost/recipes/generate.py: `max_length=config.max_length,` -> `max_length=None,`
    """  # noqa: E501
    base = ("--prompt", "x" * 60)
    if flags[0] == "--seed":
        base = (*base, *flags[2:])
    assert run(*base, *flags)[1] != run(*base)[1]


def test_the_batch_size_changes_no_completion(run, data, monkeypatch):
    """It changes how many rows run at a time."""
    from jaxpost.sampling import Sampler

    sizes, original = [], Sampler.sample
    monkeypatch.setattr(Sampler, "sample", lambda *a, **o: sizes.append(o["batch_size"]) or original(*a, **o))
    whole, parts = run("--data", data)[1], run("--data", data, "--batch-size", "1")[1]
    assert [r["completion"] for r in whole] == [r["completion"] for r in parts] and set(sizes) == {1, 3}


def test_an_adapter_is_sampled_with(run, folder, tmp_path):
    """Mutation: jaxpost/recipes/generate.py: `params = bind(params, load_adapter(config.adapter, model))` -> `pass`"""
    model = jaxpost.load(folder, dtype="float32")
    adapters = jaxpost.adapters.init(jax.random.key(0), model, rank=2, alpha=8.0)
    moved = jaxpost.adapters.Adapters(jax.tree.map(lambda x: x + 0.2, adapters.factors), adapters.spec)
    jaxpost.save_adapter(tmp_path / "adapter", moved, model)
    base, tuned = run("--prompt", "abc")[1], run("--prompt", "abc", "--adapter", str(tmp_path / "adapter"))[1]
    assert base[0]["completion"] != tuned[0]["completion"]
    want = jaxpost.generate(model, ["abc"], max_new_tokens=6, params=jaxpost.bind(model.params, moved))
    assert tuned[0]["completion"] == want[0].text


def test_a_template_that_is_given_is_used(run, tmp_path, data):
    """Mutation: jaxpost/recipes/generate.py: `config.adapter, config.chat_template,` -> `config.adapter, None,`"""
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}")
    own, given = run("--data", data)[1], run("--data", data, "--chat-template", str(tmp_path / "t.jinja"))[1]
    assert own[0] == given[0] and own[1]["logp"] != given[1]["logp"]


def test_a_template_that_writes_the_day_is_told_it(run, tmp_path, data, folder):
    """Mutation: jaxpost/recipes/generate.py: `date=config.date)` -> `date=None)`
    Mutation: jaxpost/sampling/generate.py: `Generator(model, params=params, date=date)` -> `Generator(model, params=params)`
    Mutation: jaxpost/data/prompts.py: `where=prompt.where, date=self._date)` -> `where=prompt.where)`
    """  # noqa: E501
    clock = write_clock(tmp_path / "clock.jinja")
    first, again, other = (run("--data", data, "--chat-template", str(clock), "--date", d)[1] for d in DAYS)
    assert first == again
    assert [a["logp"] == b["logp"] for a, b in zip(first, other, strict=True)] == [True, False, False]  # text, messages
    model = with_chat_template(jaxpost.load(folder, dtype="float32"), str(clock), trains_rows=False)
    (want,) = jaxpost.generate(model, [ROWS[2]["prompt"]], max_new_tokens=6, date=datetime.date(2025, 1, 31))
    assert first[2]["logp"] == pytest.approx(sum(want.logps), abs=1e-5)


def test_a_conversation_goes_on_until_exit(run, monkeypatch, folder):
    """Each answer is that of `generate` on the whole conversation so far."""
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\nand then?\n/clear\nhello\n/exit\nnever read\n"))
    status, _, said = run("--chat")
    assert status == 0
    model, messages, answers = jaxpost.load(folder, dtype="float32"), [], []
    for line in ("hello", "and then?"):
        messages.append({"role": "user", "content": line})
        answers.append(jaxpost.generate(model, [messages], max_new_tokens=6)[0].text)
        messages.append({"role": "assistant", "content": answers[-1]})
    assert said.out.replace("> ", "") == "".join(f"{a}\n" for a in (*answers, answers[0]))


REFUSED = {
    "no prompt": ([], ["--prompt", "none"]),
    "two kinds": (["--prompt", "a", "--chat"], ["--prompt and --chat"]),
    "chat to a file": (["--chat", "--n", "2"], ["--n", "--chat"]),
    "no adapter": (["--prompt", "a", "--adapter", "missing"], ["missing"]),
    "no model": (["--prompt", "a", "--model", "missing"], ["missing"]),
    "no data": (["--data", "missing.jsonl"], ["missing.jsonl"]),
    "no template": (["--prompt", "a", "--chat-template", "missing.jinja"], ["missing.jinja"]),
    "infinite": (["--prompt", "a", "--temperature", "inf"], ["--temperature"]),
    "too long": (["--prompt", "x" * 300], ["300"]),
    "empty": (["--prompt", ""], ["--prompt 1"]),
    "no day": (["--chat", "--date", "31.1.2025"], ["`--date` must be a day (YYYY-MM-DD) or none", "31.1.2025"]),
    "day of a text": (["--prompt", "a", "--date", "2025-01-31"], ["--date", "--prompt"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(run, name, tmp_path):
    flags, mentions = REFUSED[name]
    status, _, said = run(*flags)
    assert status == 2 and said.out == "" and said.err.count("\n") == 1, said.err
    for mention in mentions:
        assert mention in said.err
    assert not (tmp_path / "out").exists()


NO_PROMPTS = [{"text": "a"}, {"prompt": "a", "messages": []}, {"prompt": 3}, {"messages": [ROWS[1]["messages"][1]]}]


@pytest.mark.parametrize("row", NO_PROMPTS)
def test_a_row_that_is_no_prompt_is_named(run, tmp_path, row):
    file = write_rows(tmp_path / "rows.jsonl", [{"prompt": "fine"}, row])
    status, _, said = run("--data", str(file))
    assert status == 2 and "rows.jsonl line 2" in said.err and said.err.count("\n") == 1


def test_an_output_that_exists_is_left_alone(run, tmp_path, folder, capsys):
    (tmp_path / "mine.jsonl").write_text("keep")
    argv = ["generate", "--model", str(folder), "--prompt", "a", "--output", str(tmp_path / "mine.jsonl")]
    assert main(argv) == 2 and "mine.jsonl" in capsys.readouterr().err
    assert (tmp_path / "mine.jsonl").read_text() == "keep"
