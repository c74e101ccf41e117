"""Where data lie and how missing files are fetched, against a real server on this machine."""

from __future__ import annotations

import hashlib
import http.server
import io
import socket
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from swarmstep.errors import DataError
from swarmstep.workloads import cifar10, mnist
from swarmstep.workloads.download import Archive, data_folder, fetch, find


def one_line(error: pytest.ExceptionInfo[DataError], *parts: object) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert str(part) in text


def test_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWARMSTEP_DATA", "/from/environment")
    assert data_folder(Path("/given")) == Path("/given")
    assert data_folder(None) == Path("/from/environment")
    monkeypatch.setenv("SWARMSTEP_DATA", "")
    assert data_folder(None) == tmp_path / "data"


def test_unpacked_files_are_preferred(tmp_path: Path) -> None:
    assert find(tmp_path, "x.gz") is None
    (tmp_path / "x.gz").touch()
    assert find(tmp_path, "x.gz") == tmp_path / "x.gz"
    (tmp_path / "x").touch()
    assert find(tmp_path, "x.gz") == tmp_path / "x"


class Mirror:
    """An http server of a folder's files, on a port of its own; `asked` lists the paths asked for."""

    def __init__(self, folder: Path) -> None:
        asked: list[str] = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                asked.append(self.path)

        self.folder, self.asked = folder, asked
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def offer(self, name: str, content: bytes, *files: str) -> Archive:
        (self.folder / name).write_bytes(content)
        return Archive(f"{self.url}/{name}", hashlib.md5(content).hexdigest(), files or (name,))

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "mirror").mkdir()
    server = Mirror(tmp_path / "mirror")
    yield server
    server.close()


@pytest.fixture
def offline() -> str:
    """The address of a port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def tar(members: dict[str, bytes | None]) -> bytes:
    """Return a .tar.gz; a member without content is a symbolic link."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content or b""))
    return out.getvalue()


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_only_what_is_missing_is_downloaded(tmp_path: Path, mirror: Mirror) -> None:
    archives = [mirror.offer("a.gz", b"new a"), mirror.offer("b.gz", b"new b")]
    folder = tmp_path / "deep" / "raw"
    folder.mkdir(parents=True)
    (folder / "a").write_bytes(b"my own")
    assert fetch(archives, folder) == [folder / "a", folder / "b.gz"]
    assert [(folder / name).read_bytes() for name in names(folder)] == [b"my own", b"new b"]
    assert mirror.asked == ["/b.gz"]
    assert fetch(archives, folder) == [folder / "a", folder / "b.gz"]
    assert mirror.asked == ["/b.gz"]


def test_a_tar_gives_its_expected_members_only(tmp_path: Path, mirror: Mirror) -> None:
    content = tar({"top/1.bin": b"one", "top/more.txt": b"more", "../../2.bin": b"two", "/3.bin": b"three"})
    archive = mirror.offer("x.tar.gz", content, "1.bin", "2.bin", "3.bin")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "3.bin").write_bytes(b"my own")
    fetch([archive], folder)
    assert names(folder) == ["1.bin", "2.bin", "3.bin"]
    assert [(folder / name).read_bytes() for name in names(folder)] == [b"one", b"two", b"my own"]
    assert names(tmp_path) == ["mirror", "out"]


@pytest.mark.parametrize("members", [{"top/1.bin": b"one"}, {"1.bin": b"one", "2.bin": None}])
def test_a_tar_that_lacks_a_member(tmp_path: Path, mirror: Mirror, members: dict[str, bytes | None]) -> None:
    archive = mirror.offer("x.tar.gz", tar(members), "1.bin", "2.bin")
    with pytest.raises(DataError, match=r"lacks 2\.bin"):
        fetch([archive], tmp_path / "out")
    assert names(tmp_path / "out") == []


def test_a_file_that_is_no_tar(tmp_path: Path, mirror: Mirror) -> None:
    with pytest.raises(DataError, match="download failed") as error:
        fetch([mirror.offer("x.tar.gz", b"rubbish", "1.bin")], tmp_path / "out")
    one_line(error)


def test_wrong_md5(tmp_path: Path, mirror: Mirror) -> None:
    good, bad = mirror.offer("a.gz", b"a"), mirror.offer("b.gz", b"b")
    (mirror.folder / "b.gz").write_bytes(b"tampered")
    with pytest.raises(DataError) as error:
        fetch([good, bad], tmp_path / "out")
    one_line(error, f"missing in {tmp_path / 'out'}: b.gz;", f"expected md5 {bad.md5}", "--data or SWARMSTEP_DATA")
    assert names(tmp_path / "out") == ["a.gz"]


def test_not_found(tmp_path: Path, mirror: Mirror) -> None:
    with pytest.raises(DataError) as error:
        mnist.load(tmp_path / "data", mirror.url)
    raw = tmp_path / "data" / "MNIST" / "raw"
    one_line(
        error, f"missing in {raw}: {', '.join(mnist.MD5)};", f"{mirror.url}/train-images-idx3-ubyte.gz", "404"
    )
    assert names(raw) == []


def test_offline(tmp_path: Path, offline: str) -> None:
    with pytest.raises(DataError) as error:
        cifar10.load(tmp_path / "data", offline)
    one_line(
        error, tmp_path / "data" / cifar10.FOLDER, ", ".join(cifar10.FILES), "refused", "--data or SWARMSTEP_DATA"
    )


def test_a_mirror_that_stops_midway(tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = mirror.offer("a.gz", b"whole")
    monkeypatch.setattr("http.server.SimpleHTTPRequestHandler.copyfile", lambda *_: None)
    with pytest.raises(DataError, match=r"a\.gz"):
        fetch([archive], tmp_path / "out")
    assert names(tmp_path / "out") == []


def test_a_folder_that_cannot_be_made(tmp_path: Path, mirror: Mirror) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"missing in .*file/raw: a\.gz"):
        fetch([mirror.offer("a.gz", b"a")], tmp_path / "file" / "raw")


def test_workers_that_start_at_once_download_once(tmp_path: Path, mirror: Mirror) -> None:
    pytest.importorskip("fcntl")
    archive = mirror.offer("a.gz", b"a" * 100_000)
    threads = [threading.Thread(target=fetch, args=([archive], tmp_path / "out")) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "out" / "a.gz").read_bytes() == b"a" * 100_000
    assert names(tmp_path / "out") == ["a.gz"]
    assert mirror.asked == ["/a.gz"]
