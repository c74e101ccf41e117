"""Networks that are refused before anything is made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from swarmstep.errors import UsageError
from swarmstep.network.link import Link
from swarmstep.network.namespaces import Network

LINK = Link(1e8)


def test_without_ip_it_is_said_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="ip, tc, which this process does not have"), Network(2, LINK):
        pass


def test_without_root_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError, match=r"a network of namespaces needs .*root"), Network(2, LINK):
        pass


def test_numbers_of_workers_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="workers must be 1 to 200, found 0"):
        Network(0, LINK)
