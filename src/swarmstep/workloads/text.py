"""Text, byte by byte: the sources of Python's own standard library, or a file of one's own. No download.

The corpus is a pinned list of modules that every Python from 3.10 to 3.14 has. Their content differs between
versions, so the SHA-256 of the corpus goes into every record of a run.
"""

from __future__ import annotations

import hashlib
import math
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from swarmstep.errors import DataError
from swarmstep.workloads.base import Examples, Workload
from swarmstep.workloads.defaults import BUILT_IN
from swarmstep.workloads.gpt import BYTES, CONTEXT, GPT

TEST_EVERY = 20  # of the modules, each 20th is for the test; of a file, the last 20th of its bytes
LEAST = TEST_EVERY * (CONTEXT + 1)  # bytes of a file, so that its test part is one window

# Sorted. Single files at the top level of the library in all of 3.10 to 3.14; Linux distributions have them all.
MODULES = (
    "__future__", "_collections_abc", "_compat_pickle", "_markupbase", "_osx_support", "_py_abc", "_pydecimal",
    "_pyio", "_sitebuiltins", "_strptime", "_threading_local", "_weakrefset", "abc", "argparse", "ast",
    "base64", "bdb", "bisect", "bz2", "cProfile", "calendar", "cmd", "code", "codecs", "codeop", "colorsys",
    "compileall", "configparser", "contextlib", "contextvars", "copy", "copyreg", "csv", "dataclasses",
    "datetime", "decimal", "difflib", "dis", "doctest", "enum", "filecmp", "fileinput", "fnmatch", "fractions",
    "ftplib", "functools", "genericpath", "getopt", "getpass", "gettext", "glob", "graphlib", "gzip", "hashlib",
    "heapq", "hmac", "imaplib", "inspect", "io", "ipaddress", "keyword", "linecache", "locale", "lzma",
    "mailbox", "mimetypes", "modulefinder", "netrc", "ntpath", "nturl2path", "numbers", "opcode", "operator",
    "optparse", "os", "pdb", "pickle", "pickletools", "pkgutil", "platform", "plistlib", "poplib", "posixpath",
    "pprint", "profile", "pstats", "pty", "py_compile", "pyclbr", "pydoc", "queue", "quopri", "random",
    "reprlib", "rlcompleter", "runpy", "sched", "secrets", "selectors", "shelve", "shlex", "shutil", "signal",
    "site", "smtplib", "socket", "socketserver", "ssl", "stat", "statistics", "stringprep", "struct",
    "subprocess", "symtable", "tabnanny", "tarfile", "tempfile", "textwrap", "this", "threading", "timeit",
    "token", "tokenize", "trace", "traceback", "tracemalloc", "tty", "types", "typing", "uuid", "warnings",
    "wave", "weakref", "webbrowser", "zipapp", "zipimport",
)  # fmt: skip


class Corpus(NamedTuple):
    """A text in two parts, and the SHA-256 (hex) of the whole."""

    train: bytes
    test: bytes
    sha256: str


def standard_library(folder: Path | None = None) -> Corpus:
    """Return the modules of MODULES in `folder`, by default this Python's library, joined by newlines.

    Every 20th module is the test part: other authors than those of the training part. Raises DataError naming a
    module whose source is missing.
    """
    folder = folder or Path(sysconfig.get_path("stdlib"))
    sources = [
        _read(folder / f"{name}.py", f"install the sources of Python's library; {_OWN}") for name in MODULES
    ]
    train = [source for i, source in enumerate(sources) if (i + 1) % TEST_EVERY]
    whole = hashlib.sha256(b"\n".join(sources)).hexdigest()
    return Corpus(b"\n".join(train), b"\n".join(sources[TEST_EVERY - 1 :: TEST_EVERY]), whole)


def own_text(file: Path) -> Corpus:
    """Return the bytes of `file`; the last 5 % are the test part.

    Raises DataError where it cannot be read or has fewer than LEAST bytes.
    """
    content = _read(file, f"{_OWN}, or leave --data out for the standard library's sources")
    if len(content) < LEAST:
        raise DataError(
            f"{file}: expected a text of at least {LEAST} bytes, found {len(content)}; give a longer one"
        )
    cut = len(content) - len(content) // TEST_EVERY
    return Corpus(content[:cut], content[cut:], hashlib.sha256(content).hexdigest())


_OWN = "give a text of your own with --data FILE"


def _read(file: Path, advice: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); {advice}") from error


def windows(text: bytes, length: int = CONTEXT) -> Examples:
    """Return a text of at least `length` + 1 bytes as windows, one after the other; what is left at the end goes.

    inputs uint8 [N, length], targets int64 [N, length]: for each byte the one that follows it.
    """
    content = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    end = (len(content) - 1) // length * length
    return Examples(content[:end].view(-1, length), content[1 : end + 1].view(-1, length).long())


def prepare(inputs: Tensor) -> Tensor:
    """Return uint8 [B, T] as int64, which an embedding takes."""
    return inputs.long()


def next_byte_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats per byte of `outputs` [B, T, 256] for `targets` [B, T]."""
    return cross_entropy(outputs.flatten(0, 1), targets.flatten())


def right_bytes(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the sum over the B windows of the share of bytes, 0 to 1, that `outputs` [B, T, 256] predict."""
    return (outputs.argmax(2) == targets).double().mean(1).sum()


def bits(nats: float) -> float:
    """Return an information in bits."""
    return nats / math.log(2)


def gpt() -> nn.Module:
    """Return a GPT of width 128 with 4 layers: 829,696 parameters."""
    return GPT(width=128, layers=4)


def gpt_small() -> nn.Module:
    """Return a GPT of width 64 with 2 layers, for tests: 119,424 parameters."""
    return GPT(width=64, layers=2)


def gpt_large() -> nn.Module:
    """Return a GPT of width 256 with 6 layers: 4,807,168 parameters."""
    return GPT(width=256, layers=6)


MODELS: Mapping[str, Callable[[], nn.Module]] = {"gpt": gpt, "gpt-small": gpt_small, "gpt-large": gpt_large}


def load(data: Path | None = None) -> Workload:
    """Return the workload: windows of 64 bytes, each byte's successor to be predicted.

    `data` that is a folder, or None, means the standard library's sources; else it is a file, the text itself.
    Raises DataError where the text cannot be read or is too short.
    """
    return workload_of(own_text(data) if data and not data.is_dir() else standard_library())


def workload_of(corpus: Corpus) -> Workload:
    """Return the workload of a text, each part of which has at least 65 bytes."""
    return Workload(
        name="text",
        train=windows(corpus.train),
        test=windows(corpus.test),
        models=MODELS,
        defaults=BUILT_IN["text"].defaults,
        classes=BYTES,
        prepare=prepare,
        loss=next_byte_loss,
        correct=right_bytes,
        measures={"bits_per_byte": bits},
        corpus=corpus.sha256,
    )
