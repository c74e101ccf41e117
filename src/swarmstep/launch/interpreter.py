"""Python processes of our own, which find modules where the process that starts them does."""

from __future__ import annotations

import sys


def code_command(code: str) -> list[str]:
    """Return the command that runs a piece of code as ``python -c`` does, with this process's `sys.path`.

    ``python -c`` and ``python -m`` themselves put the working folder first, whose `random.py` would take the place
    of Python's.
    """
    return [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{code}"]


def module_command(module: str) -> list[str]:
    """Return the command that runs a module as ``python -m`` does, with this process's `sys.path`."""
    return code_command(f"import runpy\nrunpy.run_module({module!r}, run_name='__main__', alter_sys=True)")


def run_from(folder: str) -> None:
    """Give this process the `sys.path` of one that runs a program in `folder`."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path[:1] = [folder]
