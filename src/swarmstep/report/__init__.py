"""What comparisons found, for people and spreadsheets: a page, Markdown tables, CSV.

All three take the sections of `bench.compare.analysis.analyse`.
"""

from swarmstep.report.markdown import markdown
from swarmstep.report.page import page
from swarmstep.report.table import csv

__all__ = ["csv", "markdown", "page"]
