"""`jaxpost doctor` names the rows that it speaks of, broken ones among them, and counts them all."""

import json

import pytest
from doctor_runs import BROKEN, chat, clean, run_doctor

from jaxpost.data.checks.findings import Observed

LONGEST = chat("tell", "the longest answer of all " * 4)


@pytest.mark.parametrize("place", [0, 1, 31, 60])
def test_a_row_is_named_by_its_own_line_whatever_is_broken_before_it(tmp_path, capsys, place):
    """The broken line first, second, in the middle, last but one; the longest row is the last of all.

    Mutation: jaxpost/data/checks/inspection.py: `self.places += [row.where for row in read]` -> `self.places += [row.where for row in rows]`
    """  # noqa: E501
    rows = clean()
    rows.insert(place, BROKEN)
    status, found = run_doctor(tmp_path, {"clean": 0, "rows": [*rows, LONGEST]}, "--skip-bad-rows")
    said = capsys.readouterr().out
    assert (status, [finding["check"] for finding in found]) == (0, ["rows.skipped"])
    assert f"first: {tmp_path}/rows.jsonl line {2 if place == 0 else 1}, " in said
    assert f"longest: {tmp_path}/rows.jsonl line 62, " in said


def test_broken_rows_are_counted_with_the_others(tmp_path, capsys):
    """One that cannot be read and one that the template refuses.

    Mutation: jaxpost/data/checks/inspection.py: `self.counter["dropped_bad"] += len(read) - done` -> `pass`
    Mutation: jaxpost/data/checks/inspection.py: `rows=len(self.places),` -> `rows=len(self.prompts),`
    """
    refused = {"messages": [{"role": "user", "content": "\ue5c3 <|im_end|>"}, {"role": "assistant", "content": "a"}]}
    case = {"first": [BROKEN], "rows": [refused, {"messages": [{"role": "user", "content": "who?"}]}]}
    status, found = run_doctor(tmp_path, case, "--skip-bad-rows")
    said = capsys.readouterr().out
    assert status == 0 and [finding["check"] for finding in found] == ["rows.skipped", "rows.dropped"]
    assert "63 rows: 60 kept" in said and "2 skipped as broken" in said
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["numbers"]["rows"], report["numbers"]["kept"]) == (63, 60)
    dropped = next(finding for finding in found if finding["check"] == "rows.dropped")
    assert (dropped["count"], dropped["total"]) == (1, 63) and "broken" not in dropped["text"]


@pytest.mark.parametrize("skip", [(), ("--skip-bad-rows",)], ids=["", "skip-bad-rows"])
def test_rows_over_the_length_are_an_error_of_their_own_where_they_stop_training(tmp_path, skip):
    """Broken rows or not: `--skip-bad-rows` does not skip them.

    Mutation: jaxpost/data/checks/inspection.py: `("length.refused", "error")` -> `("length.refused", "drop")`
    """
    case = {"first": [BROKEN] * len(skip), "rows": [chat("tell", "word " * 60), chat("more", "word " * 50)]}
    status, found = run_doctor(tmp_path, case, "--overlong", "error", *skip)
    text = {finding["check"]: finding["text"] for finding in found if finding["severity"] == "error"}
    assert status == 2 and list(text) == ["length.refused"]
    assert text["length.refused"].startswith("2 of 62 rows longer than `--max-length`, and ")
    assert f"{tmp_path}/rows.jsonl line {61 + len(skip)}, " in text["length.refused"]


def test_nothing_is_found_where_nobody_looked():
    """Mutation: jaxpost/data/checks/findings.py: `assert self.found[check] <= self.seen[check], ` -> `assert True, `"""
    observed = Observed()
    observed.look("rows.refused", "a.jsonl line 1", False)
    observed.find("rows.refused", "a.jsonl line 1")
    with pytest.raises(AssertionError, match=r"rows.skipped is found at a.jsonl line 2"):
        observed.find("rows.skipped", "a.jsonl line 2")
    assert [(finding.count, finding.total) for finding in observed.findings()[:1]] == [(1, 1)]


def line_of(found, check):
    """The text of the one finding of a check."""
    (text,) = [finding["text"] for finding in found if finding["check"] == check]
    return text


def test_a_broken_row_is_told_in_one_sentence_with_its_place_and_advice_once(tmp_path):
    """Mutation: jaxpost/data/checks/findings.py: `.replace(f" at {place}", "")` -> ``"""
    rows = {"rows": [BROKEN], "held": [BROKEN, chat("who?", "I")]}
    text = line_of(run_doctor(tmp_path, {"data": {"rows.jsonl": [*clean(), BROKEN]}})[1], "rows.refused")
    assert text == (
        f"1 of 61 rows cannot be read or trained as they are ({tmp_path}/rows.jsonl line 61): each line must be one "
        "JSON object; got expecting property name enclosed in double quotes (column 2). Fix or remove the line."
    )
    texts = [finding["text"] for finding in run_doctor(tmp_path, rows)[1] if finding["evaluation"]]
    assert len(texts) == 1 and texts[0].startswith(
        f"1 of 2 rows of the evaluation cannot be read or trained as they are ({tmp_path}/held.jsonl line 1): each line"
    )
