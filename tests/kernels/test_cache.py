"""Compiled kernels on disk: whatever became of them, a run gives the right numbers, and says once what was wrong."""

import hashlib
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import untuned
from untuned import disk_cache
from untuned.kernels.cache import compile_source

pytest.importorskip("numba")

# lr 1/4, momentum 1/2, the gradient p itself: 4 - 4/4 = 3, then 3 - (4/2 + 3)/4, all without rounding
EXPECTED = [1.75, 3.5]


def steps() -> list[float]:
    p = torch.nn.Parameter(torch.tensor([4.0, 8.0]))
    optimizer = untuned.SGD([p], lr=0.25, momentum=0.5, execution="native")
    for _ in range(2):
        p.grad = p.detach().clone()
        optimizer.step()
    return p.tolist()


def hits() -> int:
    """How many of the compiled functions now in use came from the disk."""
    kernels = [module for name, module in sys.modules.items() if name.startswith("untuned_kernel_")]
    return sum(sum(kernel.sweep._cache_hits.values()) for kernel in kernels)


def anew() -> tuple[list[float], int]:
    """As in a new process: the numbers, and how many kernels came from the disk."""
    compile_source.cache_clear()
    disk_cache._say.cache_clear()
    for name in [name for name in sys.modules if name.startswith("untuned_kernel_")]:
        del sys.modules[name]
    return steps(), hits()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Half of the time to compile."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def files(home: Path) -> list[Path]:
    return sorted(path for path in home.rglob("*") if path.is_file())


def said(caught: list[warnings.WarningMessage], *words: str) -> bool:
    """Whether one warning was given, in one sentence, with these words."""
    (text,) = (str(warning.message) for warning in caught)
    return all(word in text for word in words) and text.count(". ") == 0


DAMAGES = {
    "emptied": lambda content: b"",
    "cut in half": lambda content: content[: len(content) // 2],
    "overwritten": lambda content: b"\x93garbage\n" * 100,
    "zeros after a power cut": lambda content: bytes(len(content)),
    "one bit": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_compiled_again_and_replaced(damage: str, home: Path) -> None:
    assert anew()[0] == EXPECTED
    kernels = len(files(home))
    for path in files(home):
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert anew() == (EXPECTED, 0)
    assert len(caught) == kernels
    assert said(caught[:1], str(home), "untuned_kernel_", "damaged", "made again")
    assert anew() == (EXPECTED, kernels)  # where a warning is an error


def test_a_file_that_nobody_may_open_is_no_obstacle(home: Path) -> None:
    anew()
    path, *_ = files(home)
    path.unlink()
    path.mkdir()  # root may open all files, but a folder is none
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert anew()[0] == EXPECTED
    assert said(caught[:1], str(home), "made again")


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path(os.environ["EVIL"]),)


@pytest.mark.skipif(os.name != "posix", reason="modes and owners are POSIX")
@pytest.mark.parametrize("owner", ["everybody", "another user"])
def test_nothing_is_run_that_another_user_may_have_written(
    owner: str, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    anew()
    evil = tmp_path_factory.mktemp("evil") / "was here"
    monkeypatch.setenv("EVIL", str(evil))
    content = pickle.dumps(_Evil())
    for path in files(home):
        path.write_bytes(hashlib.sha256(content).digest() + content)
        if owner == "everybody":
            path.parent.chmod(0o777)
        elif os.geteuid() == 0:
            os.chown(path.parent, 4321, 4321)
        else:
            pytest.skip("only root can give a folder away")
    before = [path.read_bytes() for path in files(home)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert anew() == (EXPECTED, 0)
        assert steps() == EXPECTED
    assert said(caught, str(home), "another user can write to it", "XDG_CACHE_HOME")
    assert not evil.exists()
    assert [path.read_bytes() for path in files(home)] == before


@pytest.mark.parametrize("kind", ["a file", "a folder that cannot be made"])
def test_no_folder_is_said_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "file" if kind == "a file" else Path("/proc/no/such")  # root may write everywhere else
    if kind == "a file":
        place.write_text("mine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert anew() == (EXPECTED, 0)
    assert said(caught, str(place), "made again in this process", "XDG_CACHE_HOME")


def test_a_full_disk_costs_a_warning_and_leaves_nothing(home: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # a kernel has 50 kB
        try:
            assert anew() == (EXPECTED, 0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert said(caught, str(home), "File too large", "made again")
    assert files(home) == []
    assert list((home / "untuned" / "compiled").iterdir()) == []
    assert anew()[0] == EXPECTED


SCRIPT = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import json, os, signal, warnings
from test_cache import hits, steps
import torch
torch.set_num_threads(1)
moves = int(sys.argv[1])
def killed(event, arguments):
    global moves
    if event == "os.rename" and "untuned_kernel_" in str(arguments[1]):
        moves -= 1
        if moves == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(killed)
warnings.simplefilter("error")
print(json.dumps([steps(), hits()]))
"""


def start(home: Path, moves: int = 0, processor: str = "") -> subprocess.Popen[str]:
    """A new process; it is killed when it is about to move the file with this number into its place."""
    environment = os.environ | {"XDG_CACHE_HOME": str(home)} | ({"NUMBA_CPU_NAME": processor} if processor else {})
    command = [sys.executable, "-c", SCRIPT, str(moves)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> tuple[list[float], int]:
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    values, found = json.loads(out)
    return values, found


@pytest.mark.slow
def test_processes_and_processors_that_compile_at_once_do_not_harm_each_other(tmp_path: Path) -> None:
    processors = ["", "generic"]
    at_once = [start(tmp_path, processor=name) for name in ["", *processors]]
    assert [end(process)[0] for process in at_once] == [EXPECTED] * 3
    kernels, rest = divmod(len(files(tmp_path)), 2)
    assert (rest, kernels > 0) == (0, True)  # each processor has its own
    for name in processors:
        assert end(start(tmp_path, processor=name)) == (EXPECTED, kernels)


def test_killed_while_it_writes(tmp_path: Path) -> None:
    process = start(tmp_path, moves=1)
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    values, found = end(start(tmp_path))
    assert (values, found) == (EXPECTED, 0)
    assert end(start(tmp_path))[1] > 0
