"""`jaxpost doctor` on masks: answers that repeat the question are right, questions that are trained are not."""

import random

import families
import pytest
import tiny
from doctor_runs import chat, clean, run_doctor, sentence

from jaxpost.data.chat.twins import family_templates

TOOL = {
    "type": "function",
    "function": {"name": "search", "parameters": {"type": "object", "properties": {"query": {"type": "string"}}}},
}
BOTH = tiny.CHATML.replace("== 'assistant'", "!= 'system'")  # the questions are trained as the answers are


def call(question, arguments):
    """A question that a tool is asked."""
    function = {"name": "search", "arguments": arguments}
    said = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    return {"messages": [{"role": "user", "content": question}, said], "tools": [TOOL]}


def thought(question, answer="yes"):
    """A question that the reasoning repeats."""
    said = {"role": "assistant", "content": answer, "reasoning_content": f"The user asks: {question}"}
    return {"messages": [{"role": "user", "content": question}, said]}


def parted(row):
    """Contents as lists of two parts."""
    half = lambda text: [{"type": "text", "text": t} for t in (text[:5], text[5:])]  # noqa: E731
    return {"messages": [{**m, "content": half(m["content"])} for m in row["messages"]]}


def asked(seed=0, count=24):
    rng = random.Random(seed)
    return [sentence(rng) for _ in range(count)]


REPEATED = {
    "a call": ("qwen2_5", [call(q, {"query": q}) for q in asked()]),
    "a call of Qwen3": ("qwen3", [call(q, {"query": q, "n": 2}) for q in asked()]),
    "reasoning": ("qwen3", [thought(q, f"{n} of {q[::-1]}") for n, q in enumerate(asked())]),
    "an answer": ("chatml", [chat(f" {q}\n", f"You ask: {q}") for q in asked()]),
    "a word": ("chatml", [chat(q[:3] + str(n), f"{q[:3]}{n} {q}") for n, q in enumerate(asked())]),
    "a forged turn": ("chatml", [chat(f"{q}<|im_end|>", f"{q}<|im_end|> is what you say") for q in asked()]),
}


@pytest.mark.parametrize("tags", [True, False], ids=["tagged", "shipped"])
@pytest.mark.parametrize("name", REPEATED)
def test_an_answer_may_repeat_the_question(tmp_path, name, tags):
    """In a call's arguments, in its reasoning, in its text.

    Mutation: jaxpost/data/checks/mask.py: `bool(likely) and bool(tokens.trained[_middles(context, row, likely)].any())` -> `bool(likely)`
    Mutation: jaxpost/data/checks/mask.py: `[(cut, cut + 1) for cut in encoded.cuts]` -> `[(cut, cut + 400) for cut in encoded.cuts]`
    """  # noqa: E501
    family, rows = REPEATED[name]
    template = family_templates()[family]
    case = {"model": {"template": template if tags else families.untagged(template)}, "clean": 0, "rows": rows}
    status, found = run_doctor(tmp_path, case, "--max-length", "900", "--steps", "20")
    spelled = ["rows.control"] if "forged" in name else []
    assert (status, [finding["check"] for finding in found]) == (0, spelled), found


TRAINED = {
    "long": clean(24),
    "of a letter": [chat("abcdefghijklmnopqrstuvwxyz"[n], str(n)) for n in range(24)],
    "with a forged turn": [chat(f"{q}<|im_end|>\n", f"{q} it is") for q in asked()],
    "in parts": [parted(row) for row in clean(24)],
    "words of the system": [
        {"messages": [{"role": "system", "content": q[:9]}, *chat(q, "yes")["messages"]]} for q in asked()
    ],
}


@pytest.mark.parametrize("name", TRAINED)
def test_a_question_that_is_trained_is_found_whatever_it_says(tmp_path, name):
    """Mutation: jaxpost/data/checks/mask.py: `match.start() - before for before` -> `match.start() - 40 * before for before`
    Mutation: jaxpost/data/checks/mask.py: `{i: _normal(text_of(m.get("content"))) for i, m` -> `{i: m.get("content") for i, m`
    """  # noqa: E501
    case = {"model": {"template": BOTH}, "clean": 0, "rows": TRAINED[name]}
    status, found = run_doctor(tmp_path, case, "--steps", "20")
    assert status == 2
    (wrong,) = [finding for finding in found if finding["check"] == "mask.prompt"]
    assert (wrong["count"], wrong["total"]) == (24, 24)
