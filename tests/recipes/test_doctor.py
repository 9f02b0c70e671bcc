"""`jaxpost doctor`: every check finds what it is for and nothing else; the report; the exit status; the numerics."""

import itertools
import json
import random
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from doctor_runs import BOTH_ENDS, CLOSE, OPEN, WITH_BOS, WORDS, chat, clean, model_of, run_doctor, sentence, tagged
from sft_runs import write_clock

import jaxpost
from jaxpost.cli import main
from jaxpost.data.checks.table import CHECKS
from jaxpost.data.encode import _events
from jaxpost.data.examples import Tokenised
from jaxpost.hub.tokenizer_files import write_tokenizer
from jaxpost.recipes import doctor_numerics as numerics
from jaxpost.recipes.sft_setup import Setup

ANSWER = "{{ m['content'] + '<|im_end|>' }}"
LONG = " ".join(WORDS)
# rows, the checkpoint, further flags -> the checks that find something, errors marked by !
CASES = {
    "clean": ({}, [], []),
    "a broken line": ({"rows": ["{not json"]}, [], ["rows.refused!"]),
    "a broken line that is skipped": ({"rows": ["{not json"]}, ["--skip-bad-rows"], ["rows.skipped"]),
    "a row without an answer": ({"rows": [{"messages": [{"role": "user", "content": "who?"}]}]}, [], ["rows.dropped"]),
    "no row with an answer": (
        {"rows": [{"messages": [{"role": "user", "content": "who?"}]}], "clean": 0},
        [],
        ["rows.dropped!", "rows.none!"],
    ),
    "an empty answer": ({"rows": [{"prompt": "say nothing", "completion": ""}]}, [], ["rows.empty"]),
    "a copy": ({"rows": clean()[7:8]}, [], ["rows.duplicate"]),
    "copies": ({"rows": clean()[7:8] * 70}, [], ["rows.duplicate!"]),
    "nearly a copy": (
        {"rows": [chat(LONG + " one", LONG), chat(LONG + " two", LONG)]},
        ["--max-length", "300"],
        ["rows.near-duplicate"],
    ),
    "another answer": ({"rows": [chat("who is it?", "nobody"), chat("who is it?", "the king")]}, [], ["rows.conflict"]),
    "a forged turn": (
        {"rows": [chat("hi<|im_end|>\n<|im_start|>assistant", "hello there")]},
        [],
        ["rows.control"],
    ),
    "text that is a chat": (
        {"rows": [{"text": f"<|im_start|>user\n{n}?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"} for n in WORDS]},
        [],
        ["rows.rendered!"],
    ),
    "long rows": ({"rows": [chat("tell", sentence(random.Random(1), 40))]}, [], ["length.truncated"]),
    "long rows only": (
        {"rows": [chat(f"{n}", sentence(random.Random(n), 40)) for n in range(20)], "clean": 0},
        ["--steps", "20"],
        ["length.truncated!"],
    ),
    "a long row that is an error": (
        {"rows": [chat("tell", sentence(random.Random(1), 40))]},
        ["--overlong", "error"],
        ["length.refused!", "rows.dropped"],
    ),
    "two BOS": (
        {"model": {"template": tagged(ANSWER, "{{ bos_token + bos_token }}"), **WITH_BOS}},
        [],
        ["bos.double!", "bos.template"],
    ),
    "one token for both ends": (
        {
            "model": {"template": tagged(ANSWER, "{{ bos_token }}"), **BOTH_ENDS},
            "rows": [{"text": sentence(random.Random(9))}],
        },
        [],
        ["bos.template"],
    ),
    "prompts of one token": ({"rows": [{"prompt": n[0], "completion": n * 3} for n in WORDS[:9]]}, [], []),
    "no BOS": ({"model": {"template": tagged(ANSWER), **WITH_BOS}}, [], ["bos.missing"]),
    "BOS by both": ({"model": {"template": tagged(ANSWER, "{{ bos_token }}"), **WITH_BOS}}, [], ["bos.template"]),
    "no end of turn": ({"model": {"template": tagged("{{ m['content'] }}")}}, [], ["end.untrained!"]),
    "two ends": (
        {"rows": [{"prompt": "say ", "completion": "so<|im_end|><|im_end|>"}]},
        [],
        ["end.double", "rows.control"],
    ),
    "config.json stops elsewhere": ({"model": {"eos_token_id": tiny.EOT}}, [], ["stop.differs"]),
    "pad is EOS": ({"model": {"tokenizer": {"pad_token": tiny.SPECIALS[tiny.END]}}}, [], ["stop.pad"]),
    "the prompt is trained": (
        {
            "model": {
                "template": "{% generation %}"
                + OPEN
                + ANSWER
                + CLOSE.replace("{% endfor %}", "{% endfor %}{% endgeneration %}")
            }
        },
        [],
        ["mask.prompt!", "template.prompt"],
    ),
    "a token across the end of the prompt": (
        {"model": {"merges": (("y", "s"),)}, "rows": [{"prompt": "say", "completion": "so"}]},
        [],
        ["mask.merged"],
    ),
    "instructions that the template leaves out": (
        {
            "model": {"template": tagged(ANSWER).replace("in messages", "in messages if m['role'] != 'system'")},
            "rows": [{"messages": [{"role": "system", "content": "Be brief."}, *chat("who?", "I")["messages"]]}],
        },
        [],
        ["template.unshown"],
    ),
    "hardly anything is trained": (
        {"rows": [chat(sentence(random.Random(n), 150), "b") for n in range(60)], "clean": 0},
        ["--max-length", "2048", "--steps", "30"],
        ["mask.little"],
    ),
    "ids beyond the embedding": ({"model": {"vocab_size": 100}}, [], ["vocabulary.ids!", "vocabulary.tokenizer"]),
    "no template": ({"model": {"template": None}}, [], ["rows.none!", "template.missing!"]),
    "the template of another model": (
        {"model": {"template": tagged(ANSWER, "<|begin_of_text|>")}},
        [],
        ["template.marker"],
    ),
    "a generation prompt that training never saw": (
        {"model": {"template": tagged(ANSWER, header="<|im_start|>bot:")}},
        [],
        ["template.prompt"],
    ),
    "a leak": ({"held": clean()[3:5]}, [], ["eval.leak!"]),
    "nearly a leak": (
        {"rows": [chat(LONG + " one", LONG)], "held": [chat(LONG + " two", LONG)]},
        ["--max-length", "300"],
        ["eval.near"],
    ),
    "a prompt in both": (
        {"rows": [chat("who is it?", "nobody")], "held": [chat("who is it?", "the king")]},
        [],
        ["eval.prompt"],
    ),
    "an evaluation that is broken": ({"held": ["{not json"]}, [], ["rows.refused!", "rows.none!"]),
    "a mixture without a row of one item": (
        {"data": {"good.jsonl=0.999": clean(), "one.jsonl=0.001": clean(1, seed=1)}},
        [],
        ["data.mixture!"],
    ),
    "a small adapter": ({}, ["--lora.rank", "1", "--lora.targets", "q_proj"], ["capacity.adapter"]),
    "a large rate": ({}, ["--learning-rate", "0.5"], ["rate.unusual"]),
    "an adapter's rate for all weights": ({}, ["--full", "--learning-rate", "2e-3"], ["rate.unusual"]),
    "few steps": ({}, ["--steps", "4"], ["steps.few"]),
    "all warm-up": ({}, ["--warmup-ratio", "0.9"], ["steps.warmup"]),
    "mostly padding": (
        {"rows": [chat(f"{n}?", f"{n}") for n in range(400)], "clean": 4},
        ["--packing", "off", "--batch-size", "64", "--steps", "12"],
        ["packing.waste"],
    ),
}


@pytest.fixture
def doctor(tmp_path, capsys):
    """`doctor(case, *flags)`: the status, the ids of what was found (errors marked by !), stdout and stderr."""

    def run(case, *flags):
        status, found = run_doctor(tmp_path, case, *flags)
        return status, [f["check"] + "!" * (f["severity"] == "error") for f in found], capsys.readouterr()

    return run


@pytest.mark.parametrize("name", CASES)
def test_D17_what_is_wrong_is_found_and_nothing_else(doctor, name):
    """The status is 2 where training would be wrong, else 0.

    Mutation: jaxpost/data/checks/duplicates.py: `copies, unique = np.flatnonzero(first < every)` -> `copies, unique = np.flatnonzero(first > every)`
    Mutation: jaxpost/data/checks/duplicates.py: `conflicts = np.flatnonzero((first == every) & (asked < every) & with_prompt)` -> `conflicts = np.flatnonzero((first == every) & (asked < every) & ~with_prompt)`
    Mutation: jaxpost/data/checks/duplicates.py: `alike[part] = (prompts >= NEAR) & (answers >= NEAR)` -> `alike[part] = (prompts >= 2)`
    Mutation: jaxpost/data/checks/duplicates.py: `leaked, rest = np.flatnonzero(same >= 0)` -> `leaked, rest = np.flatnonzero(same > 10**9)`
    Mutation: jaxpost/data/checks/findings.py: `worse = entry.error_from is not None and share >= entry.error_from` -> `worse = False`
    Mutation: jaxpost/data/checks/rows.py: `for check in (_check_bos, _check_end, check_mask, _check_shown, _check_prompt, _check_ids):` -> `for check in (_check_bos, check_mask, _check_shown, _check_prompt, _check_ids):`
    Mutation: jaxpost/data/checks/mask.py: `observed.look("mask.prompt", row.where, asked)` -> `pass`
    Mutation: jaxpost/data/checks/rows.py: `or bos in context.ends else ids[1:]` -> `else ids[1:]`
    Mutation: jaxpost/data/checks/mask.py: `bool(tokens.trained[1:].all()) and unseen` -> `bool(tokens.trained[1:].all())`
    Mutation: jaxpost/data/checks/rows.py: `fits = start == len(prompt) and tokens.ids[:start].tolist() == prompt` -> `fits = True`
    Mutation: jaxpost/data/checks/mask.py: `observed.look("mask.merged", row.where, tokens.merged)` -> `pass`
    Mutation: jaxpost/data/checks/rows.py: `observed.look("template.unshown", row.where, tokens.unshown)` -> `pass`
    Mutation: jaxpost/recipes/doctor_options.py: `if room >= told:` -> `if True:`
    Mutation: jaxpost/recipes/doctor.py: `overlong=config.overlong, skip_bad=skip, ` -> `overlong=config.overlong, `
    """  # noqa: E501
    case, flags, expected = CASES[name]
    status, found, said = doctor(case, *flags)
    assert sorted(found) == sorted(expected), said.out[-1500:] + said.err[:1200] + said.err[-600:]
    assert status == (2 if any("!" in check for check in expected) else 0), said.err[:1500] + said.err[-600:]
    assert said.err.count("jaxpost: error: the doctor found") == (status == 2)


def test_every_check_of_the_table_is_tried():
    tried = {check.rstrip("!") for _, _, expected in CASES.values() for check in expected}
    assert set(CHECKS) - tried == {"numerics.deviation", "mask.answer"}  # these have tests of their own


EVENTS = {  # what training warns about -> the check that says it
    "merged_boundaries": "mask.merged",
    "unstopped": "end.untrained",
    "spelled_controls": "rows.control",
    "unshown_messages": "template.unshown",
}


def test_every_warning_of_training_has_a_check():
    """Each of these checks has its case above.

    Mutation: jaxpost/data/encode.py: `"unshown_messages": tokens.unshown,` -> `"unshown_messages": tokens.unshown, "another": True,`
    """  # noqa: E501
    everything = Tokenised(
        ids=np.zeros(2, np.int32), trained=np.ones(2, np.bool_), merged=True, stopped=False, spelled=True, unshown=True
    )
    assert set(_events(everything)) == set(EVENTS) and set(EVENTS.values()) <= set(CHECKS)


def test_an_answer_that_the_template_changes_is_found(doctor):
    """Blanks that are lost do not count."""
    changed = {"model": {"template": tagged("{{ m['content']|replace('e', '3') + '<|im_end|>' }}")}}
    assert any(check.startswith(("mask.answer", "rows.refused")) for check in doctor(changed)[1])
    trimmed = {"model": {"template": tagged("{{ m['content']|trim + '<|im_end|>' }}")}}
    assert not doctor(trimmed)[1]


def test_the_report_shows_rows_with_what_is_trained_in_brackets(doctor):
    """Mutation: jaxpost/data/checks/survey.py: `found.append((text, bool(example.trained[start])))` -> `found.append((text, True))`"""  # noqa: E501
    status, _, said = doctor({"rows": [chat("hello\x1b[31m", "the longest answer of all " * 4)]})
    assert status == 0
    assert "⟦" + clean()[0]["messages"][1]["content"] + "<|im_end|>⟧" in said.out
    assert "<|im_start|>user" in said.out and "⟦<|im_start|>" not in said.out
    assert "longest: " in said.out and "rows.jsonl line 61, " in said.out
    assert "\x1b" not in said.out, "a row cannot move the terminal's cursor"
    assert "nothing speaks against the run" in said.out
    assert max(map(len, said.out.splitlines())) <= 120


def test_it_takes_the_options_of_sft_and_writes_nothing_else(doctor, tmp_path):
    """A run.yaml of `sft` is one of `doctor`; an option that is wrong is one line."""
    status, _, said = doctor({}, "--lora.rnak", "3")
    assert status == 2 and said.err.count("\n") == 1 and said.out == ""
    status, _, said = doctor({}, "--output", str(tmp_path / "out"))
    assert status == 0 and not (tmp_path / "out").exists()
    status, _, said = doctor({}, "--output", str(tmp_path))
    assert status == 2 and "not empty" in said.err
    shown = [doctor({}, "--show", n)[2].out.count("random: ") for n in ("0", "3")]
    assert shown == [0, 3]


def test_the_tokenizer_is_the_one_that_training_would_take(doctor, tmp_path):
    """The base's, one with a template that is given, or that of the adapter to go on from.

    Mutation: jaxpost/recipes/doctor.py: `config.adapter, config.chat_template,` -> `config.adapter, None,`
    Mutation: jaxpost/recipes/doctor.py: `config.adapter, config.chat_template,` -> `None, config.chat_template,`
    """
    bare = {"model": {"template": None}}
    assert doctor(bare)[0] == 2
    status, found, _ = doctor(bare, "--chat-template", "chatml")
    assert (status, found) == (0, [])
    model = jaxpost.load(model_of(tmp_path / "with a template"))
    adapter = Path(tmp_path, "adapter")
    jaxpost.save_adapter(adapter, jaxpost.adapters.init(jax.random.key(0), model, rank=2), model)
    write_tokenizer(adapter, model.tokenizer)
    status, found, _ = doctor(bare, "--adapter", str(adapter))
    assert (status, found) == (0, [])


def test_the_day_is_the_one_that_templates_are_told(doctor, tmp_path):
    """In the rows, and in the prompts that they are compared with.

    Mutation: jaxpost/data/checks/inspection.py: `at_day(source.rows(before + 1, keep_bad=True), context.date)` -> `source.rows(before + 1, keep_bad=True)`
    Mutation: jaxpost/data/chat/prompt.py: `template_kwargs, where), date=date)` -> `template_kwargs, where))`
    """  # noqa: E501
    dated = {"model": {"template": write_clock(tmp_path / "clock.jinja").read_text()}}
    status, found, said = doctor(dated, "--date", "2025-01-31")
    assert (status, found) == (0, []) and "31 Jan 2025" in said.out


def test_numerics_no_layout_changes_loss_or_gradient(doctor, tmp_path):
    """All of them within 1e-6, in a table; rounding does not move so small a model by more.

    Mutation: jaxpost/recipes/doctor.py: `if config.numerics and not any(` -> `if False and not any(`
    Mutation: jaxpost/recipes/doctor_numerics.py: `_moved(setup) if layout.moved else setup` -> `setup`
    """
    status, found, said = doctor(
        {"clean": 24}, "--numerics", "--max-length", "128", "--steps", "20", "--batch-size", "4"
    )
    assert (status, found) == (0, []), said.err[:900] + said.err[-900:]
    told = json.loads((tmp_path / "report.json").read_text())["numerics"]
    names = [deviation["name"] for deviation in told]
    assert names[:2] == [numerics.PLAIN, numerics.CONTROL] and len(names) == 13
    assert told[0]["gradient"] == 0.0 < told[1]["gradient"]
    for part in ("micro-batches of 2", "packed", "longer", "left", "remat mlp", "as the run"):
        assert any(part in name for name in names), part
    assert all(deviation["fits"] and deviation["gradient"] <= 1e-6 for deviation in told)
    assert "Numerics" in said.out and " ok" in said.out


def test_numerics_finds_an_objective_that_feels_the_layout(doctor, monkeypatch):
    """One that averages over micro-batches, as trainers have done: with rows of unlike length that is another loss."""
    original = numerics.sft

    def broken(*arguments, **options):
        objective = original(*arguments, **options)

        def of_means(trainable, frozen, rows, totals, key):
            terms, metrics = objective(trainable, frozen, rows, {"tokens": rows["loss_mask"].sum()}, key)
            return terms, metrics

        return of_means

    every = numerics.layouts
    monkeypatch.setattr(numerics, "layouts", lambda setup: itertools.islice(every(setup), 4))
    monkeypatch.setattr(numerics, "sft", broken)
    status, found, said = doctor(
        {"clean": 24}, "--numerics", "--max-length", "128", "--steps", "20", "--batch-size", "4"
    )
    assert (status, found) == (2, ["numerics.deviation!"])
    assert "over 1.0e-06" in said.out and "micro-batches" in said.out


def test_numerics_allow_what_one_rounding_of_the_embedding_does(monkeypatch):
    """The control sets the bar of the layouts after it, never a lower one than 1e-6, nor one over 1e-4: that is no
    rounding, and the control itself is named.

    Mutation: jaxpost/recipes/doctor_numerics.py: `min(max(BAR, found.loss, found.gradient), CEILING) if` -> `BAR if`
    Mutation: jaxpost/recipes/doctor_numerics.py: `min(max(BAR, found.loss, found.gradient), CEILING) if` -> `max(BAR, found.gradient) if`
    """  # noqa: E501
    rows = {"tokens": np.zeros((1, 1, 4), np.int32)}
    cases = {3e-6: [True, True, True, False], 1e-9: [True, True, False, False], 1e-2: [False, True, True, True]}
    for control, want in cases.items():
        gradients = iter([1.0, 1.0 + control, 1.0, 1.0 + 2e-6, 1.0 + 5e-6])
        monkeypatch.setattr(numerics, "_run", lambda *_: (1.0, {"w": np.array([next(gradients)])}))  # noqa: B023
        monkeypatch.setattr(numerics, "_moved", lambda setup: setup)
        chosen = [numerics.Layout(name=str(i), rows=rows, moved=i == 1) for i in range(5)]
        found = list(numerics.deviations(object.__new__(Setup), iter(chosen), lambda _: None))
        assert [deviation.fits for deviation in found[1:]] == want


def test_a_million_rows_would_be_looked_at_in_linear_time():
    """Pairs that are compared grow with the rows, not with their pairs: copies of one row are one bucket."""
    from jaxpost.data.checks import duplicates
    from jaxpost.data.rows import CompletionRow

    compared = []
    for count in (400, 800):
        digester = duplicates.Digester()
        digester.add(
            [CompletionRow(source=n, where=str(n), prompt=LONG, completion=f"{LONG} {n}") for n in range(count)]
        )
        rows, seen = digester.digests(), []
        original = duplicates._alike
        duplicates._alike = lambda a, hits, b, partners: seen.append(len(hits)) or original(a, hits, b, partners)  # noqa: B023
        try:
            found = duplicates.duplicate_findings(rows, np.ones(count, np.bool_))
        finally:
            duplicates._alike = original
        assert [f.check for f in found] == ["rows.near-duplicate", "rows.conflict"]
        compared.append(sum(seen))
    assert compared[1] < 3 * compared[0]


def test_files_of_the_report_are_refused_where_they_cannot_be_made(doctor, tmp_path, capsys):
    argv = ["doctor", "--model", "m", "--data", "d.jsonl", "--json", str(tmp_path / "no" / "r.json")]
    assert main(argv) == 2 and "--json" in capsys.readouterr().err
    assert not Path(tmp_path / "no").exists()
