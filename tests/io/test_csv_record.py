import csv

import pytest

from mambaseg.errors import InputError
from mambaseg.io.csv_record import append_rows


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_new_columns_are_added_and_old_rows_keep_theirs(tmp_path):
    path = tmp_path / "deep" / "r.csv"
    append_rows(path, [{"a": 1, "peak": 2.5}])
    append_rows(path, [{"a": 3, "reserved": 4}, {"a": 5, "reserved": None}])
    assert rows_of(path) == [
        {"a": "1", "peak": "2.5", "reserved": ""},
        {"a": "3", "peak": "", "reserved": "4"},
        {"a": "5", "peak": "", "reserved": ""},
    ]


def test_lines_of_before_stay_as_they_are(tmp_path, repository):
    path = tmp_path / "step.csv"
    before = (repository / "benchmarks" / "results" / "step.csv").read_text()
    path.write_text(before)
    columns = before.splitlines()[0].split(",")
    append_rows(path, [dict.fromkeys(columns, "x")])
    assert path.read_text().startswith(before)


def test_a_file_that_is_no_such_table_is_refused_and_kept(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("a,b\n1,2,3\n")
    with pytest.raises(InputError, match=r"r\.csv"):
        append_rows(path, [{"a": 1}])
    assert path.read_text() == "a,b\n1,2,3\n"


def test_a_new_file_has_its_columns_in_the_order_asked_for(tmp_path):
    path = tmp_path / "rows.csv"
    append_rows(path, [{"c": 1, "a": 2}], ("a", "b"))
    append_rows(path, [{"b": 3}], ("b", "a"))
    assert path.read_text() == "a,b,c\n2,,1\n,3,\n"
