"""Looking for defects in a data set before a network learns them. A new check is one function with a decorator."""

from mambaseg.datamodules.examination.check import Finding, Report, Result
from mambaseg.datamodules.examination.examine import examine
from mambaseg.datamodules.examination.scan import Collection, find_collection

__all__ = ["Collection", "Finding", "Report", "Result", "examine", "find_collection"]
