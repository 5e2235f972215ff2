"""Going through a data set with every check."""

from collections.abc import Callable, Sequence

from mambaseg.datamodules.examination import contents, geometry, patients  # noqa: F401  these file their checks
from mambaseg.datamodules.examination.check import OF_A_SCAN, OF_ALL, Finding, Report, Result
from mambaseg.datamodules.examination.scan import Collection
from mambaseg.datamodules.examination.survey import Survey, Trace, trace
from mambaseg.datamodules.splits import Split, load_split, split_names

OnScan = Callable[[str, int], None]


def examine(
    collection: Collection,
    splits: Sequence[Split] | None = None,
    on_scan: OnScan = lambda case_id, total: None,
) -> Report:
    """Hold every check against a data set; each scan is read once, and one is in memory at a time.

    Args:
        collection: The data set.
        splits: To look for leaks in; by default those that come with the package for this data set.
        on_scan: Called after each scan with its name and the number of all.
    """
    chosen = tuple(known_splits(collection.name) if splits is None else splits)
    findings: dict[str, list[Finding]] = {check.name: [] for check in OF_A_SCAN.checks}
    traces: list[Trace] = []
    for scan in collection.scans():
        for check in OF_A_SCAN.checks:
            findings[check.name].extend(check.look(scan))
        traces.append(trace(scan))
        on_scan(scan.case_id, len(collection.cases))
    results = [Result(check.name, check.fix, tuple(findings[check.name])) for check in OF_A_SCAN.checks]
    survey = Survey(collection.name, collection.class_names, tuple(traces), chosen)
    results += [Result(check.name, check.fix, tuple(check.look(survey))) for check in OF_ALL.checks]
    return Report(
        collection.name,
        collection.where,
        len(traces),
        len(survey.patients()),
        tuple(split.name for split in chosen),
        tuple(results),
    )


def known_splits(dataset: str) -> list[Split]:
    """Return the splits of the package that divide a data set."""
    return [split for split in map(load_split, split_names()) if split.dataset == dataset]
