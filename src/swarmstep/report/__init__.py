"""Reports of comparisons: an HTML page, Markdown tables, CSV, and advice for programs.

All take the sections that `swarmstep.compare.analysis.analyse` returns.
"""

from swarmstep.report.markdown import markdown
from swarmstep.report.notes import advice
from swarmstep.report.page import page
from swarmstep.report.table import csv

__all__ = ["advice", "csv", "markdown", "page"]
