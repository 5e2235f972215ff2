import pytest

from mambaseg.errors import InputError
from mambaseg.experiment import find_experiment, load_experiment, merge


def write(folder, name, text):
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_later_values_win_and_mappings_merge(tmp_path):
    write(tmp_path, "_base/a", "x: {p: 1, q: 2}\nlist: [1, 2]\n")
    write(tmp_path, "_base/b", "x: {q: 3}\n")
    path = write(tmp_path, "e", "bases: [_base/a, _base/b]\nx: {r: 4}\nlist: [9]\n")
    assert load_experiment(path) == {"x": {"p": 1, "q": 3, "r": 4}, "list": [9]}


def test_merge_changes_neither_argument():
    base, over = {"a": {"b": [1]}}, {"a": {"c": [2]}}
    merged = merge(base, over)
    merged["a"]["b"].append(5)
    merged["a"]["c"].append(6)
    assert (base, over) == ({"a": {"b": [1]}}, {"a": {"c": [2]}})


def test_overrides_win_and_are_yaml(tmp_path):
    path = write(tmp_path, "e", "a: {b: 1}\n")
    config = load_experiment(path, ["a.b=2.5", "a.c=[x, 1e-4]", "d=null"])
    assert config == {"a": {"b": 2.5, "c": ["x", 1e-4]}, "d": None}


def test_exponents_without_a_dot_are_numbers(tmp_path):
    assert load_experiment(write(tmp_path, "e", "lr: 1e-4\nname: e4\n")) == {"lr": 1e-4, "name": "e4"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bases: [missing]", ["bases", "missing", "e.yaml"]),
        ("bases: nothing", ["bases", "list"]),
        ("bases: [e]", ["circle", "e.yaml -> e.yaml"]),
        ("[1, 2]", ["list", "mapping"]),
        ("a: [", ["not valid YAML"]),
    ],
)
def test_bad_files_name_the_file_and_the_field(tmp_path, text, words):
    with pytest.raises(InputError) as error:
        load_experiment(write(tmp_path, "e", text))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("override", ["novalue", "=3", "a..b=1", "a=[1"])
def test_bad_overrides_show_how_to_write_one(tmp_path, override):
    with pytest.raises(InputError, match="--set"):
        load_experiment(write(tmp_path, "e", "a: 1"), [override])


def test_unknown_experiment_lists_close_names(tmp_path, monkeypatch):
    monkeypatch.setenv("MAMBASEG_EXPERIMENTS", str(tmp_path))
    write(tmp_path, "semi_acdc", "a: 1")
    with pytest.raises(InputError, match="Did you mean 'semi_acdc'"):
        find_experiment("semi_acdcc")
