"""Runs of `jaxpost doctor` on a tiny checkpoint and rows made for it."""

import json
import random

import tiny

from jaxpost.cli import main

BOS = "<|eot|>"
BROKEN = "{not json"
WORDS = (
    "amber birch cobalt delta ember fjord grove harbor island juniper kelp lagoon meadow nectar opal prairie".split()
)


def sentence(rng, words=4):
    return " ".join(f"{rng.choice(WORDS)}{rng.randrange(1000)}" for _ in range(words))


def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def clean(count=60, seed=0):
    rng = random.Random(seed)
    return [chat(sentence(rng), sentence(rng)) for _ in range(count)]


def model_of(folder, template=tiny.CHATML, tokenizer=None, processor=None, merges=(), **config):
    """A tiny checkpoint whose template, tokenizer settings, post-processor, merges or config differ."""
    tiny.make(folder, "llama", num_hidden_layers=2, template=template, merges=merges)
    for name, changes in (("tokenizer_config.json", tokenizer), ("config.json", config)):
        written = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**written, **(changes or {})}))
    if processor is not None:
        written = json.loads((folder / "tokenizer.json").read_text())
        (folder / "tokenizer.json").write_text(json.dumps({**written, "post_processor": processor}))
    return folder


ADDS_BOS = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {BOS: {"id": BOS, "ids": [tiny.EOT], "tokens": [BOS]}},
}
WITH_BOS = {"tokenizer": {"bos_token": BOS}, "processor": ADDS_BOS}
BOTH_ENDS = {  # as GPT-2 has it
    "tokenizer": {"bos_token": tiny.SPECIALS[tiny.END]},
    "processor": json.loads(json.dumps(ADDS_BOS).replace(BOS, tiny.SPECIALS[tiny.END]).replace("[3]", f"[{tiny.END}]")),
}
OPEN = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ':' }}"
CLOSE = "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant:' }}{% endif %}"


def tagged(inner, before="", header="<|im_start|>assistant:"):
    """A template whose tags stand round `inner` of the assistant's turns."""
    said = f"{{% if m['role'] == 'assistant' %}}{{% generation %}}{inner}{{% endgeneration %}}"
    other = "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
    return before + OPEN + said + other + CLOSE.replace("<|im_start|>assistant:", header)


def write_lines(path, rows):
    """A file of rows, of which those that are strings are lines as they stand."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def run_doctor(folder, case, *flags):
    """The status and the findings of `jaxpost doctor` for a case.

    A case is a dictionary: `model`, the changes of `model_of`; `clean`, how many clean rows there are (60); `first` and
    `rows`, rows before and after them; `data`, name in `--data` -> rows, instead of all these; `held`, the evaluation.
    """
    model = model_of(folder / "model", **case.get("model", {}))
    every = {"rows.jsonl": [*case.get("first", []), *clean(case.get("clean", 60)), *case.get("rows", [])]}
    argv = ["doctor", "--model", str(model), "--max-length", "160", "--batch-size", "2"]
    for name, rows in case.get("data", every).items():
        write_lines(folder / name.partition("=")[0], rows)
        argv += ["--data", str(folder / name)]
    if "held" in case:
        argv += ["--eval-data", str(write_lines(folder / "held.jsonl", case["held"]))]
    given = {flag for flag in flags if flag in ("--max-length", "--batch-size")}
    argv = [a for i, a in enumerate(argv) if a not in given and argv[i - 1] not in given]
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    status = main([*argv, *flags, "--json", str(report)])
    return status, json.loads(report.read_text())["findings"] if report.exists() else []
