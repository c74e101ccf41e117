"""The wheel and the sdist: what is in them, and whether they work for an ordinary user of a fresh environment.

They are built here, or taken from the folder that SWARMSTEP_DIST names, as by `make package`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

import swarmstep

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "tests" / "support" / "smoke.py"
KINDS = {".py", ".bib", ".typed", ".html", ".css", ".js", ".gz", ".txt"}
LIMIT = 2_000_000  # bytes; results and evidence are larger
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the sdist, and the wheel that was built from it."""
    if given := os.environ.get("SWARMSTEP_DIST"):
        return ROOT / given
    made = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", made, ROOT], check=True, capture_output=True)
    return made


def one(dist: Path, pattern: str) -> Path:
    (file,) = dist.glob(pattern)
    return file


@pytest.fixture(scope="module")
def environment() -> Iterator[Path]:
    """Return a fresh environment, which every user may enter, with nothing in it."""
    with tempfile.TemporaryDirectory() as made:
        os.chmod(made, 0o755)
        folder = Path(made, "env")
        subprocess.run([ordinary_user()[1], "-m", "venv", "--without-pip", folder], check=True)
        yield folder


def test_the_sdist_has_the_sources_and_nothing_else(dist: Path) -> None:
    file = one(dist, "*.tar.gz")
    with tarfile.open(file) as archive:
        names = [PurePosixPath(member.name) for member in archive if member.isfile()]
    top = f"swarmstep-{swarmstep.__version__}"
    assert {name.parts[0] for name in names} == {top}
    beside = {str(name.relative_to(top)) for name in names if name.parts[1] != "src"}
    assert beside == {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    inside = [name.relative_to(top, "src") for name in names if name.parts[1] == "src"]
    assert {name.parts[0] for name in inside} == {"swarmstep", "swarmstep.egg-info"}
    assert {name.suffix for name in inside if name.parts[0] == "swarmstep"} == KINDS
    assert file.stat().st_size < LIMIT


def test_the_wheel_has_what_git_has(dist: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, check=True, capture_output=True, text=True)
    with zipfile.ZipFile(one(dist, "*.whl")) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {f"src/{name}" for name in names} == set(listed.stdout.split())


@pytest.mark.parametrize("pattern", ["*.whl", "*.tar.gz"])
def test_an_ordinary_user_in_an_empty_folder(dist: Path, environment: Path, pattern: str) -> None:
    as_user, _ = ordinary_user()
    python, smoke = environment / "bin" / "python", environment / "smoke.py"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    pip += ["--constraint", ROOT / "constraints.txt"]
    subprocess.run([*pip, "--force-reinstall", "--no-deps", one(dist, pattern)], check=True)
    subprocess.run([*pip, one(dist, pattern)], check=True)  # what it needs, once
    shutil.copy(SMOKE, smoke)
    with tempfile.TemporaryDirectory() as home:
        os.chmod(home, 0o777)
        env = {"HOME": home, "TMPDIR": home, "PATH": os.defpath, "OMP_NUM_THREADS": "1"}
        command = [*as_user, python, smoke, swarmstep.__version__]
        said = subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr


def ordinary_user() -> tuple[list[str], str]:
    """Return how to run a command as an ordinary user, and a Python of this version that such a user may run."""
    own = str(Path(sys.executable).resolve())
    if os.getuid():
        return [], own
    as_user = [shutil.which("runuser") or "runuser", "-u", "nobody", "--"]
    wanted = "{}.{}".format(*sys.version_info)
    for python in (own, f"/usr/bin/python{wanted}", f"/usr/local/bin/python{wanted}"):
        if not subprocess.run([*as_user, python, "-c", ""], capture_output=True, check=False).returncode:
            return as_user, python
    pytest.skip(f"no Python {wanted} that an ordinary user may run, and this is root: run it as another user")
