"""The model card: README.md of the output folder, with the front matter that the Hub reads."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import yaml


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What a card tells.

    Attributes:
      name: heading.
      folder: of the output, as the code that loads it spells it.
      base_model: folder or Hub id that training started from.
      on_hub: `base_model` is a Hub id; a path is no valid entry of the front matter.
      adapter: PEFT adapter, or None for a whole checkpoint; a few words on it.
      has_tokenizer: the folder holds the tokenizer; otherwise it is the base model's.
      started_from: the adapter that was trained further, if one was.
      method: tag and words: ("sft", "supervised fine-tuning").
      data: the data's files or Hub ids.
      counts: what became of their rows, a line.
      options: of the run, by name.
      results: words -> number or text.
      versions: package -> version.
      hardware: a line.
      chat_templates: name -> text; empty for a tokenizer without one.
    """

    name: str
    folder: str
    base_model: str
    on_hub: bool
    adapter: str | None
    has_tokenizer: bool
    started_from: str | None
    method: tuple[str, str]
    data: tuple[str, ...]
    counts: str
    options: Mapping[str, Any]
    results: Mapping[str, Any]
    versions: Mapping[str, str]
    hardware: str
    chat_templates: Mapping[str, str]


def model_card(card: Card) -> str:
    """The card's Markdown. No text in it can end a code block or the front matter early."""
    kind = f"A {card.adapter} for" if card.adapter else "A fine-tuned copy of"
    parts = [
        f"---\n{_yaml(front_matter(card))}---",
        f"# {' '.join(card.name.split())}",
        f"{kind} {code(card.base_model)}, made by {card.method[1]} with jaxpost.",
        "## How to load it",
        fenced(_loading(card), "python"),
        "## Training",
        "\n".join(_facts(card)),
        "The options:",
        fenced(_yaml(card.options), "yaml"),
        "The course of the run is in `metrics.jsonl`, one record a step.",
        "## Chat template",
        *_templates(card.chat_templates),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(card: Card) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in card.versions.items())
    return [
        *([f"- Started from: the adapter {code(card.started_from)}"] if card.started_from else []),
        f"- Data: {', '.join(map(code, card.data))}: {card.counts}",
        *(f"- {name}: {_number(value)}" for name, value in card.results.items()),
        f"- Hardware: {card.hardware}",
        f"- Versions: {versions}",
    ]


def front_matter(card: Card) -> dict[str, Any]:
    """What the Hub reads: library, task, tags and, if it can be found there, the base model."""
    base = {"base_model": card.base_model} if card.on_hub else {}
    tags = ["jaxpost", card.method[0], *(["lora"] if card.adapter else [])]
    library = "peft" if card.adapter else "transformers"
    return {**base, "library_name": library, "pipeline_tag": "text-generation", "tags": tags}


def fenced(text: str, language: str = "") -> str:
    """A code block with a fence longer than any run of backticks in the text, which so cannot end it.

    >>> fenced("a ```` b").splitlines()
    ['`````', 'a ```` b', '`````']
    """
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}{'' if text.endswith(chr(10)) else chr(10)}{fence}"


def code(text: str) -> str:
    """Text as inline code, on one line, whatever backticks are in it.

    >>> code("a`b"), code("x")
    ('`` a`b ``', '`x`')
    """
    line = " ".join(text.split())
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {line} {fence}" if longest else f"{fence}{line}{fence}"


def _loading(card: Card) -> str:
    """Python that loads the model and answers one question."""
    peft = "from peft import PeftModel\n" if card.adapter else ""
    weights = "base" if card.adapter else "folder"
    tokenizer = "folder" if card.has_tokenizer else "base"
    lines = [f"{peft}from transformers import AutoModelForCausalLM, AutoTokenizer\n"]
    lines += [f"base = {card.base_model!r}"] if card.adapter else []
    lines += [f"folder = {card.folder!r}", f"tokenizer = AutoTokenizer.from_pretrained({tokenizer})"]
    lines += [f'model = AutoModelForCausalLM.from_pretrained({weights}, dtype="auto")']
    lines += ["model = PeftModel.from_pretrained(model, folder)"] if card.adapter else []
    if card.chat_templates:
        lines += [
            'messages = [{"role": "user", "content": "Hello!"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
            ")",
        ]
    else:
        lines += ['inputs = tokenizer("Hello!", return_tensors="pt")']
    lines += [
        "output = model.generate(**inputs, max_new_tokens=64)",
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    return "\n".join(lines)


def _templates(templates: Mapping[str, str]) -> list[str]:
    if not templates:
        return ["The tokenizer has none: no row went through one."]
    parts = ["Messages were trained through this template and are to be sent through it:"]
    for name, text in templates.items():
        parts += [f"{code(name)}:"] * (len(templates) > 1) + [fenced(text, "jinja")]
    return parts


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _yaml(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=1000)
