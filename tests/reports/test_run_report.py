"""The report: one file, nothing from outside, nothing unescaped, and the right numbers."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from mambaseg.cli import main
from mambaseg.commands.report import distinct_names
from mambaseg.metrics.summary import summarize
from mambaseg.reports.html import VOID_TAGS, element, facts, table
from mambaseg.reports.run_record import read_run
from mambaseg.reports.run_report import report_html


class Checker(HTMLParser):
    """Collects tags, attributes and text, and fails on tags that do not close."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"src", "href", "xlink:href", "action", "srcset"}]
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID_TAGS:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def check(document):
    checker = Checker()
    checker.feed(document)
    checker.close()
    assert checker.open == []
    return checker


@pytest.fixture(scope="module")
def document(finished_run):
    return report_html([read_run(finished_run)])


def test_it_is_one_file(document):
    checker = check(document)
    assert not re.search(r"https?://", document)
    assert "script" not in checker.tags
    assert "link" not in checker.tags
    assert "@import" not in document
    assert "url(" not in re.sub(r"url\(#\w+\)", "", document)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in checker.links)
    assert any(link.startswith("data:") for link in checker.links), "the overlays are in it"
    assert checker.tags.count("svg") >= 6


def test_names_from_outside_are_escaped(document):
    assert "<script>" not in document
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in document
    assert "<h1>semi &lt;acdc&gt; &amp; co</h1>" in document
    assert "<acdc>" not in document


def test_it_tells_what_was_measured(document, finished_run):
    run = read_run(finished_run)
    text = " ".join(check(document).text)
    step, best = run.series["val/dice"].best
    assert f"{best:.3f} best val/dice, after {step + 1} steps" in text
    assert run.series["val/dice"] == run.series["val/ensemble/dice"]
    assert text.index("best val/dice") < text.index("Learning curves")
    (ensemble,) = [entry for entry in summarize(run.scores["test"].rows) if entry.predictor == "ensemble"]
    assert f"{ensemble.foreground['dice'].mean:.3f} ±" in text
    assert run.card["data"]["cases"]["val"]["sha256"][:16] in text
    assert "patient010_frame01" in text
    assert run.card["packages"]["torch"] in text


def test_worst_case_comes_first(document, finished_run):
    rows = [r for r in read_run(finished_run).scores["val"].rows if r.class_index > 0]
    means = {c: sum(r.dice for r in rows if r.case_id == c) for c in {r.case_id for r in rows}}
    section = document[document.index("Validation scores") : document.index("Test scores")]
    order = re.findall(r"<tr><td>(patient\w+)</td>", section)
    assert order == sorted(means, key=lambda case: (means[case], case))


def test_a_poor_run_has_a_report_that_says_what_is_missing(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("torn")
    document = report_html([read_run(tmp_path)])
    text = " ".join(check(document).text)
    assert "Nothing was logged twice yet" in text
    assert "no run_card.json" in text
    assert "1 lines of metrics.jsonl could not be read" in text


def test_command_writes_one_report_and_says_where(finished_run, capsys):
    assert main(["report", str(finished_run)]) == 0
    assert str(finished_run / "report.html") in capsys.readouterr().out.replace("\n", "")
    check((finished_run / "report.html").read_text(encoding="utf-8"))


def test_command_compares_runs(finished_run, tmp_path, monkeypatch):
    other = tmp_path / "again" / finished_run.name
    shutil.copytree(finished_run, other)
    card = json.loads((other / "run_card.json").read_text())
    (other / "run_card.json").write_text(json.dumps(card | {"seed": 4242}))
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(finished_run), str(other)]) == 0
    document = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    text = " ".join(check(document).text)
    assert "Comparison of 2 runs" in text
    assert "again/semi <acdc> & co: ensemble" in text
    assert "4242" in text


def test_command_refuses_what_is_no_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", "nowhere"]) == 2
    assert "There is no run 'nowhere'" in capsys.readouterr().err


def test_names_that_tell_runs_apart(tmp_path):
    a, b = tmp_path / "x" / "seed1", tmp_path / "y" / "seed1"
    assert distinct_names([a]) == ["seed1"]
    assert distinct_names([a, b]) == ["x/seed1", "y/seed1"]
    assert distinct_names([a, a]) == ["seed1 (1)", "seed1 (2)"]


def test_html_building_blocks_escape():
    assert element("td", "<&>").text == "<td>&lt;&amp;&gt;</td>"
    assert element("img", src="x", alt='"').text == '<img src="x" alt="&quot;">'
    assert element("th", "a", scope="col", class_="n").text == '<th scope="col" class="n">a</th>'
    assert "&lt;b&gt;" in table(["<b>"], [[1]]).text
    assert facts({"a": {"b": None, "c": 1}}).text == "<dl><dt>a.b</dt><dd>–</dd><dt>a.c</dt><dd>1</dd></dl>"
