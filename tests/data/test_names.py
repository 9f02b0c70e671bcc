"""What an item of `--data` names: a file, or a data set of the hub, and its weight."""

import pytest
from refusals import refused

from jaxpost.data.names import DataName, parse_name, parse_names


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("org/name", {}),
        ("org/name:test", {"split": "test"}),
        ("org/name:train[10%:20%]+test", {"split": "train[10%:20%]+test"}),
        ("org/name@v1.0", {"revision": "v1.0"}),
        ("org/name@refs/pr/3:test", {"revision": "refs/pr/3", "split": "test"}),
        ("org/name/20220301.en", {"config": "20220301.en"}),
        ("org/na-me.x/conf@0.3:test=0.25", {"config": "conf", "revision": "0.3", "split": "test", "weight": 0.25}),
        ("org/name=2", {"weight": 2.0}),
    ],
)
def test_a_data_set_of_the_hub(text, parts):
    """Configuration, revision, split and weight, each there or not; a revision may look like a number.

    Mutation: jaxpost/data/names.py: `(@(?P<revision>[^:@]+))?(:` -> `(@(?P<revision>[^/:@]+))?(:`
    Mutation: jaxpost/data/names.py: `return dataclasses.replace(hub, split=split) if split else hub` -> `return hub`
    """
    base = text.partition("=")[0]
    repository = "/".join(base.partition(":")[0].partition("@")[0].split("/")[:2])
    assert parse_name(text) == DataName(text=base, repository=repository, **parts)


@pytest.mark.parametrize("name", ["a.jsonl", "org/name.json", "a:b@c=0.3.jsonl", "C:\\x\\a.parquet", "x=1/y.JSONL"])
def test_a_file_whatever_is_in_its_name(name):
    """A file's ending is the last of its name, so no mark can be taken for a part of it, nor the reverse.

    Mutation: jaxpost/data/names.py: `    if _is_file(text):` -> `    if False:`
    """
    assert str(parse_name(name).path) == name and parse_name(name).weight is None
    weighted = parse_name(f"{name}=0.3")
    assert (str(weighted.path), weighted.weight, weighted.text) == (name, 0.3, name)


def test_what_exists_here_is_no_data_set_of_the_hub(tmp_path, monkeypatch):
    """A folder `org/name` is refused as a folder, not looked for elsewhere.

    Mutation: jaxpost/data/names.py: ` in SUFFIXES or os.path.exists(text)` -> ` in SUFFIXES`
    """
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert str(parse_name("org/name").path) == "org/name" and parse_name("org/other").path is None


@pytest.mark.parametrize("text", ["rows", "rows.csv", "./rows", "/a/b", "org/", "org/name:", "a b/c", "", "org/name@"])
def test_names_of_nothing_are_refused(text):
    refused(lambda: parse_name(text), text, "ORG/NAME")


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "much", ""])
def test_a_weight_is_a_number_above_0(weight):
    """Mutation: jaxpost/data/names.py: `if not (0 < weight < math.inf):` -> `if False:`"""
    for text in (f"a.jsonl={weight}", f"org/name={weight}"):
        refused(lambda text=text: parse_name(text), text, "weight")


def test_all_items_have_a_weight_or_none():
    """Mutation: jaxpost/data/names.py: `if bare and len(bare) < len(names):` -> `if False:`"""
    assert [name.weight for name in parse_names(["a.jsonl=1", "b.jsonl=3"])] == [1, 3]
    refused(lambda: parse_names(["a.jsonl=1", "b.jsonl"]), "b.jsonl=WEIGHT")
