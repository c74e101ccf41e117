"""Reports of comparisons: an HTML page, Markdown tables, CSV.

All three take the sections that `swarmstep.compare.analysis.analyse` returns.
"""

from swarmstep.report.markdown import markdown
from swarmstep.report.page import page
from swarmstep.report.table import csv

__all__ = ["csv", "markdown", "page"]
