"""Python programs that tests start, forked from a process that has imported everything: there at once.

`Popen` is `subprocess.Popen`, except that ``python -m MODULE``, ``python FILE`` and ``python -c CODE`` are forked
instead of started, also behind ``env NAME=VALUE`` and ``ip netns exec NAME``: an interpreter that imports torch
and its compiler needs six seconds of processor time. What such a program starts is forked, too. Commands with
flags of the interpreter's are started as usual; so is all that a test without the fixture `forked` starts.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import dataclasses
import gc
import io
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from swarmstep.launch.fork_server import PRELOADED_MODULES

# The server of this context has imported what takes long; functions of tests run in processes of its own, too.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([*PRELOADED_MODULES, "torch.distributed.fsdp", "pytest", "hypothesis"])
EXECUTABLE = sys.executable
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl
LIMIT = 60.0  # seconds; a hang, not a measurement


@dataclasses.dataclass
class Program:
    """What a forked process is to be; `files`: its file descriptors, in the order in which ours are given."""

    kind: str  # "-m", "-c" or "file"
    name: str
    arguments: list[str]
    environment: dict[str, str]
    files: list[int]
    folder: str
    mask: list[int]
    session: bool
    namespace: str = ""


def parsed(command: Sequence[Any], environment: Mapping[str, str]) -> Program | None:
    """Return the Python program that a command starts; None if it starts anything else."""
    words, variables, namespace = [os.fspath(word) for word in command], dict(environment), ""
    while words[:1] == ["env"] or words[:3] == ["ip", "netns", "exec"]:
        if words[0] == "env":
            del words[0]
            while "=" in words[0]:
                name, _, variables[name] = words.pop(0).partition("=")
        else:
            namespace, words = words[3], words[4:]
    if words[:1] != [EXECUTABLE]:
        return None
    words = words[2:] if words[1:2] == ["-u"] else words[1:]
    if words[:1] in (["-m"], ["-c"]):
        kind, name, *arguments = words
    elif words and words[0].endswith(".py"):
        kind, (name, *arguments) = "file", words
    else:
        return None
    return Program(kind, name, arguments, variables, [], os.getcwd(), [], False, namespace)


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """As the module says."""

    def _execute_child(  # type: ignore[no-untyped-def]
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *rest,
    ) -> None:  # fmt: skip
        usual = shell or preexec_fn or isinstance(args, (str, os.PathLike))
        program = None if usual else parsed(args, env or os.environ)
        if not program:
            super()._execute_child(  # type: ignore[misc]
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
                p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *rest,
            )  # fmt: skip
            return
        program.folder = os.fspath(cwd) if cwd else program.folder
        program.session = rest[-2] if sys.version_info >= (3, 11) else rest[-1]
        program.mask = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())]
        program.files = [0, 1, 2, *pass_fds]
        given = [number if number != -1 else place for place, number in enumerate((p2cread, c2pwrite, errwrite))]
        self.pid = _start(program, [*given, *pass_fds])
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the programs of this test forked."""
    monkeypatch.setattr(subprocess, "Popen", Popen)


_zygote: str = ""  # the address of the process that forks for this one
_in_program = False  # this is a forked program, which forks by itself
_lock = threading.Lock()


def _start(program: Program, files: list[int]) -> int:
    """Fork; return the process id of a child of this process."""
    if _in_program:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            _become(program, files)
        return pid
    with _lock, _adopting(), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(LIMIT)
        connection.connect(_address())
        content = json.dumps(dataclasses.asdict(program)).encode()
        socket.send_fds(connection, [b"%010d" % len(content)], files)
        connection.sendall(content)
        with connection.makefile("rb") as answer:
            return int(answer.readline())


@contextlib.contextmanager
def _adopting() -> Any:
    """Be the parent of processes whose own has ended, for so long."""
    prctl = ctypes.CDLL(None).prctl
    prctl(SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(SUBREAPER, 0, 0, 0, 0)


def _address() -> str:
    global _zygote
    if not _zygote:
        path = str(Path(tempfile.mkdtemp(prefix="swarmstep-tests-")) / "zygote")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            process = CONTEXT.Process(target=_serve, args=(listener,), daemon=True)
            process.start()
        _zygote = path
    return _zygote


def _serve(listener: socket.socket) -> None:
    """Fork on request, for ever."""
    gc.collect()
    gc.freeze()  # programs share these pages
    while True:
        connection, _ = listener.accept()
        with connection:
            head, files, _, _ = socket.recv_fds(connection, 10, 100)
            with connection.makefile("rb") as rest:
                program = Program(**json.loads(rest.read(int(head))))
            middle = os.fork()
            if not middle:
                pid = os.fork()
                if pid:
                    connection.sendall(b"%d" % pid)
                    os._exit(0)
                _become(program, files)
            os.waitpid(middle, 0)
            connection.sendall(b"\n")  # the program is by now a child of the one who asked
            for number in files:
                os.close(number)


def _become(program: Program, files: list[int]) -> NoReturn:
    """Make this process, just forked, one that was started as the program."""
    try:
        _arrange(program, files)
        code = _run(program)
    except KeyboardInterrupt:  # Python ends itself by the signal, at whatever moment it comes
        traceback.print_exc()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        code = 130
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        code = code or 120
    os._exit(code)


def _arrange(program: Program, files: list[int]) -> None:
    global _in_program
    _in_program = True
    atexit._clear()
    if program.session:
        os.setsid()
    # Above all numbers that are to be given out, then down to them.
    held = [os.dup2(number, 1000 + place) for place, number in enumerate(files)]
    for number, target in zip(held, program.files, strict=True):
        os.dup2(number, target, inheritable=True)
    kept = sorted(program.files)
    for low, high in zip(kept, [*kept[1:], 65536], strict=True):
        os.closerange(low + 1, high)
    if program.namespace:
        from swarmstep.launch import enter_namespace

        enter_namespace.enter(program.namespace)
    os.chdir(program.folder)
    os.environ.clear()
    os.environ.update(program.environment)
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.FileIO(0, closefd=False))
    for number, name in ((1, "stdout"), (2, "stderr")):
        by_line, errors = number == 2 or os.isatty(number), "backslashreplace" if number == 2 else "strict"
        raw = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
        stream = io.TextIOWrapper(raw, "utf-8", errors, line_buffering=by_line)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    signal.set_wakeup_fd(-1)
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, program.mask)
    subprocess.Popen = Popen  # type: ignore[misc]


def _run(program: Program) -> int:
    """Run it to its end; return the exit code."""
    sys.argv = [program.name, *program.arguments]
    try:
        if program.kind == "-m":
            sys.path.insert(0, os.getcwd())
            if not hasattr(sys.modules.get(program.name), "__path__"):
                sys.modules.pop(program.name, None)  # else runpy warns that it has been imported before
            runpy.run_module(program.name, run_name="__main__", alter_sys=True)
        elif program.kind == "file":
            sys.path.insert(0, str(Path(program.name).parent))
            runpy.run_path(program.name, run_name="__main__")
        else:
            sys.argv[0] = "-c"
            sys.path.insert(0, os.getcwd())
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(program.name, "<string>", "exec"), vars(sys.modules["__main__"]))
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return (leaving.code or 0) & 0xFF
        print(leaving.code, file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0
