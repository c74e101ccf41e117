"""The documentation site: `make docs`. The pages are the Markdown files beside this one, as they are.

What stands elsewhere already is put in here and not written again: the table of contents is the list in README.md,
the head of a method's page is its card, the reference is what the docstrings say.
"""

import importlib
import inspect
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import swarmstep
from swarmstep import Strategy
from swarmstep.cards import ASYNCHRONOUS, CARDS, LAYERWISE, Card
from swarmstep.recipes import RECIPES

HERE = Path(__file__).parent
project, author, release = "swarmstep", "The swarmstep developers", swarmstep.__version__
project_copyright = author
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
html_theme, html_title = "furo", "swarmstep"
html_theme_options = {"light_css_variables": {"code-font-size": "0.76em"}}
html_extra_path = ["evidence.html"]
html_show_sphinx = html_copy_source = False
myst_heading_anchors = 3
myst_url_schemes = ("http", "https", "mailto")
nb_execution_mode, nb_execution_timeout, nb_execution_raise_on_error = "force", 300, True
nb_merge_streams = True
autodoc_member_order, autodoc_typehints, autodoc_class_signature = "bysource", "description", "mixed"
autodoc_typehints_description_target = "documented"
napoleon_use_ivar = True
# Docstrings are plain text, not reStructuredText: what is between backticks is code, and nothing else is marked.
default_role, smartquotes_action = "code", "D"  # quotes stay as they are typed
# Blocks without a language are formulas and output.
highlight_language = "text"
suppress_warnings = ["ref.python"]  # names that several modules have

ALSO = {name: recipe.card for name, recipe in RECIPES.items()}
PACKAGES = ("asynchronous", "layerwise", "objectives", "parallel", "regularizers", "sparse")


def contents(text: str) -> str:
    """Return the list of all pages as tables of contents, one for each of its headings."""
    parts: list[str] = []
    for title, items in re.findall(r"^\*\*(.+?)\*\*\n\n((?:- .*\n?)+)", text, re.MULTILINE):
        # Pages of a folder with a README are in its table.
        links = re.findall(r"^- \[(.+?)\]\(([\w-]+|notebooks/[\w-]+|[\w-]+/README)\.md\)", items, re.MULTILINE)
        pages = "\n".join(f"{name} <{target}>" for name, target in links)
        parts.append(f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n{pages}\n```")
    return "\n\n".join(parts)


def siblings(folder: str) -> str:
    """Return a table of contents of a folder's other pages."""
    pages = sorted(page.stem for page in (HERE / folder).glob("*.md") if page.stem != "README")
    return "```{toctree}\n:hidden:\n\n" + "\n".join(pages) + "\n```"


def card_table(card: Card) -> str:
    """Return what is to be seen of a method at once."""
    paper = f"{card.paper} (`swarmstep cite {card.name}`)" if card.key else card.paper
    rows = {
        "what it does": card.title,
        "sent by a worker in a round": f"{card.traffic} P",
        "kept between rounds": f"{card.memory} P",
        "paper": paper,
    }
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def methods_table() -> str:
    """Return all methods beside each other."""
    head = "| method | what it does | use when | avoid when |\n|---|---|---|---|\n"
    rows: list[str] = []
    for card in (*CARDS.values(), *ASYNCHRONOUS.values(), *LAYERWISE.values(), *ALSO.values()):
        page = f"{card.name}.md" if (HERE / "methods" / f"{card.name}.md").exists() else ""
        page = page or ("../asynchronous.md" if card.name in ASYNCHRONOUS else "")
        name = f"[{card.name}]({page})" if page else card.name
        rows.append(f"| {name} | {card.title} | {card.advice.use_when} | {card.advice.avoid_when} |")
    return head + "\n".join(rows)


def reference() -> str:
    """Return the directives for all public names."""
    modules = {"swarmstep": swarmstep, **{f"swarmstep.{name}": _package(name) for name in PACKAGES}}
    parts: list[str] = []
    for name, module in modules.items():
        parts.append(f"## `{name}`\n\n```{{eval-rst}}")
        for item in module.__all__:
            found = getattr(module, item)
            if isinstance(found, type):
                # What a strategy does in a round is the contract's, and is documented there.
                members = "" if issubclass(found, Strategy) and found is not Strategy else "   :members:\n"
                parts.append(f".. autoclass:: {name}.{item}\n{members}")
            elif callable(found) and hasattr(found, "__name__"):
                parts.append(f".. autofunction:: {name}.{item}\n")
        parts.append("```\n")
    parts.append("## `swarmstep.errors`\n\n```{eval-rst}\n.. automodule:: swarmstep.errors\n   :members:\n```\n")
    return "\n".join(parts)


def _package(name: str) -> ModuleType:
    return importlib.import_module(f"swarmstep.{name}")


def on_source(_: Any, page: str, source: list[str]) -> None:
    """Add to a page what stands elsewhere."""
    text = source[0]
    folder, _, name = page.rpartition("/")
    cards = {**CARDS, **LAYERWISE, **ALSO}
    if page == root_doc:
        text += "\n" + contents(text)
    elif name == "README":
        text += f"\n{siblings(folder)}\n" + (f"\n{methods_table()}\n" if folder == "methods" else "")
    elif page == "api":
        text += "\n" + reference()
    elif page == "log":
        text = (HERE.parent / "benchmarks" / "LOG.md").read_text(encoding="utf-8").replace("](../docs/", "](")
    elif folder == "methods" and name in cards:
        title, _, rest = text.partition("\n")
        text = f"{title}\n\n{card_table(cards[name])}\n{rest}"
    text = re.sub(r"\]\((?:\.\./)+benchmarks/LOG\.md", f"]({'../' * page.count('/')}log.md", text)
    # A page of its own, and no download.
    source[0] = re.sub(r"\[([^\]]*)\]\(evidence\.html\)", r'<a href="evidence.html">\1</a>', text)


def on_docstring(*about: Any) -> None:
    """Make of plain text what reStructuredText shows as it is: only backticks mean something."""
    lines, literal = about[-1], False
    for place, line in enumerate(lines):
        if line.strip() and not line.startswith(" "):
            literal = line.rstrip().endswith("::")
        if not literal:
            parts = re.split(r"(`[^`]*`)", line)
            lines[place] = "".join(p if p.startswith("`") else re.sub(r"([*|_\\])", r"\\\1", p) for p in parts)


def on_signature(*about: Any) -> tuple[str, str] | None:
    """A class that checks its arguments in `__new__` is called as its `__init__` says."""
    _, what, _, found, _, signature, returned = about
    if what != "class" or not (signature or "").startswith("(*args"):
        return None
    whole = inspect.signature(found)
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in whole.parameters.values()]
    return str(inspect.Signature(bare)), returned


def on_finished(app: Any, error: Exception | None) -> None:
    """The front page is where a browser looks for it."""
    if error is None:
        folder = Path(app.outdir)
        shutil.copyfile(folder / "README.html", folder / "index.html")


def setup(app: Any) -> None:
    """Register what is above with Sphinx."""
    for event, function, priority in (
        ("source-read", on_source, 500),
        ("autodoc-process-docstring", on_docstring, 100),  # before napoleon, which writes reStructuredText
        ("autodoc-process-signature", on_signature, 500),
        ("build-finished", on_finished, 500),
    ):
        app.connect(event, function, priority)
