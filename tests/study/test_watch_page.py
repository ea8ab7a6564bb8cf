"""The page that follows a study: over HTTP, and in a real browser where one is installed."""

import itertools
import json
import os
import shutil
import signal
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from untuned.study.config import MethodEntry, Run, Study, StudyError, TaskEntry
from untuned.study.runner import CURVE, Result
from untuned.study.store import Store
from untuned.study.watch import serve

TASK = TaskEntry(
    name="line", title="A <b>line</b>", metric="val_accuracy", maximize=True, chance=0.1, batch_size=4, epochs=2
)
STUDY = Study(
    version="0.1.0",
    tasks=(TASK,),
    methods=tuple(MethodEntry(name=name, lrs=(0.1, 1.0), default_lr=0.1) for name in ("adam", "momo", "prodigy")),
    seeds=(0, 1),
)


def begin(store: Store, run: Run) -> None:
    with store.writing():
        store.start(run)


def end(store: Store, run: Run, status: str = "done") -> None:
    rows = [{"step": i, "epoch": i / 5, "train_loss": 1 / (1 + i), "val_loss": 1 / (1 + i), "metric": 0.1,
             "lr_effective": run.lr, "step_us": 50.0, "fwdbwd_us": 50.0} for i in range(11)]  # fmt: skip
    where = 'Traceback (most recent call last):\n  File "own.py", line 1, in loss\n'
    error = f"{where}RuntimeError: no <room>" if status == "crashed" else None
    final = {"val_loss": 0.1, "val_accuracy": 0.75} if status == "done" else None
    with store.writing():
        store.start(run)
        store.write_curve(run, pa.Table.from_pylist(rows, schema=CURVE))
        store.finish(run, Result(status, 2.0, 10, final, error))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "study", STUDY)


@pytest.fixture
def server(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setattr("untuned.study.watch.PATIENCE", 0)
    with serve(store.folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def address(server: ThreadingHTTPServer, path: str = "/") -> str:
    return f"http://127.0.0.1:{server.server_address[1]}{path}"


def get(server: ThreadingHTTPServer, path: str, **headers: str) -> tuple[int, str, str]:
    """Status, text and version of an answer."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(address(server, path), headers=headers), timeout=60
        ) as found:
            return found.status, found.read().decode(), found.headers["X-Version"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, "", ""


def state(server: ThreadingHTTPServer) -> dict[str, Any]:
    status, text, _ = get(server, "/state")
    assert status == 200
    return json.loads(text)


def test_folder_without_a_study_and_a_taken_port_are_refused(tmp_path: Path, server: ThreadingHTTPServer, store: Store):
    with pytest.raises(StudyError, match=r"holds no study: study\.json is missing"):
        serve(tmp_path)
    with pytest.raises(StudyError, match=r"port \d+ cannot be used .* choose another --port"):
        serve(store.folder, server.server_address[1])


def test_only_this_machine_is_served_and_only_three_paths(server: ThreadingHTTPServer):
    assert server.server_address[0] == "127.0.0.1"
    assert get(server, "/")[0] == 200
    assert get(server, "/study.json")[0] == 404
    assert get(server, "/state", Host="evil.example:80")[0] == 403


def test_state_follows_the_study(server: ThreadingHTTPServer, store: Store):
    runs = STUDY.runs()
    before = state(server)
    assert (before["phase"], before["total"], before["left"], before["time_left"]) == ("waiting", 12, 12, None)

    for run, status in zip(runs, ("done", "diverged", "crashed"), strict=False):
        end(store, run, status)
    begin(store, runs[3])
    stopped = state(server)
    assert stopped["phase"] == "begun"  # nobody is at work: the running one is dead
    assert stopped["version"] != before["version"] and stopped["version"] == state(server)["version"]
    assert (stopped["running"], stopped["left"], stopped["time_left"]) == ([], 9, None)

    with store.writing():
        found = state(server)
    assert found["phase"] == "running" and [it["run"] for it in found["running"]] == [str(runs[3])]
    assert [found[s] for s in ("done", "diverged", "crashed", "left")] == [1, 1, 1, 8]
    assert found["time_left"] == 9 * 2.0
    assert found["crashes"] == ["line: 1 run crashed: RuntimeError: no <room>"]
    assert [it["run"] for it in found["latest"]] == [str(run) for run in runs[2::-1]]
    assert found["latest"][2]["told"] == "val_accuracy 0.75"

    for run in runs:
        end(store, run)
    assert state(server)["phase"] == "finished"


def test_report_comes_again_only_after_a_change(server: ThreadingHTTPServer, store: Store):
    status, empty, version = get(server, "/report")
    assert status == 200 and "No run has finished yet." in empty and "<script" not in empty
    assert get(server, f"/report?have={version}")[:2] == (204, "")
    end(store, STUDY.runs()[0])
    status, page, after = get(server, f"/report?have={version}")
    assert status == 200 and after == state(server)["version"] != version
    assert "At its default lr, Adam ends at 75.0 %" in page and "A &lt;b&gt;line&lt;/b&gt;" in page


def test_what_cannot_be_read_is_said_and_the_report_stays(server: ThreadingHTTPServer, store: Store):
    end(store, STUDY.runs()[0])
    kept = get(server, "/report")
    (store.folder / "study.json").rename(store.folder / "away")
    assert "study.json is missing" in state(server)["problem"]
    assert get(server, "/report") == kept
    (store.folder / "away").rename(store.folder / "study.json")
    assert state(server)["done"] == 1


def test_a_study_that_begins_is_never_told_that_the_page_is_at_work(server: ThreadingHTTPServer, store: Store):
    with store.writing(), closing(sqlite3.connect(store.folder / ".lock", timeout=0)) as lock:
        state(server)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            lock.execute("begin exclusive")  # asking did not take the lock away
    with store.writing():
        pass


# In a browser


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


class Browser:
    """A page in headless Chromium, steered by its DevTools protocol over a pair of pipes."""

    def __init__(self, folder: Path, width: int, height: int) -> None:
        assert BROWSER
        to_read, self.to = os.pipe()
        self.of, to_write = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={folder}", f"--window-size={width},{height}"]
        silent = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]
        pipes = [(os.POSIX_SPAWN_DUP2, to_read, 3), (os.POSIX_SPAWN_DUP2, to_write, 4)]  # where it looks for them
        self.process = os.posix_spawn(BROWSER, [BROWSER, *flags], os.environ, file_actions=[*silent, *pipes])
        os.close(to_read)
        os.close(to_write)
        self.numbers, self.buffer, self.errors = itertools.count(1), b"", list[str]()
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Page"):
            self.send(f"{domain}.enable")

    session: str | None = None

    def send(self, method: str, **params: Any) -> Any:
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.buffer:
                found = os.read(self.of, 1 << 16)
                assert found, "the browser has ended"
                self.buffer += found
            text, _, self.buffer = self.buffer.partition(b"\0")
            answer = json.loads(text)
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(answer["params"]["exceptionDetails"]["text"])
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def __call__(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        return self.send("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait(self, expression: str, seconds: float = 30) -> None:
        until = time.monotonic() + seconds
        while not self(expression):
            assert time.monotonic() < until, f"{expression} did not come true: {self('document.body.innerText')[:2000]}"
            time.sleep(0.1)

    def close(self) -> None:
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self.to)
        os.close(self.of)


@pytest.fixture
def browse(tmp_path: Path) -> Iterator[Callable[[str, int], Browser]]:
    opened = list[Browser]()

    def browse(url: str, width: int) -> Browser:
        opened.append(browser := Browser(tmp_path / f"browser{len(opened)}", width, 800))
        browser.send("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        browser.send("Page.navigate", url=url)
        return browser

    yield browse
    for browser in opened:
        browser.close()


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_page_follows_a_study_and_keeps_the_readers_place(
    server: ThreadingHTTPServer, store: Store, browse: Callable[[str, int], Browser]
):
    runs = STUDY.runs()
    page = browse(address(server), 1000)
    page.wait("document.querySelector('h1')?.textContent === 'No run has finished yet.'")
    assert page("document.querySelector('#phase').textContent") == "Not begun yet: 12 runs to make"

    end(store, runs[0])
    begin(store, runs[1])
    page.wait("document.querySelectorAll('main svg').length >= 6")
    assert "Stopped: 1 of 12 runs have ended" in page("document.querySelector('#phase').textContent")
    assert page("document.querySelector('#counts').innerText").split() == [
        "1",
        "done",
        "0",
        "diverged",
        "0",
        "crashed",
        "0",
        "running",
        "11",
        "left",
    ]

    page("document.querySelector('#m1').click()")
    page("scrollTo(0, document.querySelector('#cost').getBoundingClientRect().top + scrollY - 100)")
    top = page("document.querySelector('#cost').getBoundingClientRect().top")
    old = page("document.querySelector('main').dataset.old = 'yes'")
    assert old == "yes" and top == pytest.approx(100, abs=2)
    time.sleep(3)
    assert page("document.querySelector('main').dataset.old") == "yes"  # nothing has changed: nothing is replaced
    end(store, runs[1], "crashed")
    for run in runs[2:5]:
        end(store, run)
    page.wait("!document.querySelector('main').dataset.old")
    assert page("document.querySelector('#m1').checked") and not page("document.querySelector('#m0').checked")
    assert page("document.querySelector('#cost').getBoundingClientRect().top") == pytest.approx(top, abs=2)
    assert page("document.querySelector('#why').textContent") == "line: 1 run crashed: RuntimeError: no <room>"
    assert page("document.querySelector('#now').innerText").count("val_accuracy 0.75") == 4

    for run in runs:
        end(store, run)
    page.wait("document.querySelector('#phase').textContent === 'Finished: 12 of 12 runs'")
    page.wait("document.querySelector('h1').textContent.startsWith('At their default lr')")
    assert page.errors == []
    server.shutdown()
    server.server_close()
    page.wait("document.querySelector('#phase').textContent.includes('untuned watch has ended')")
    assert page("document.querySelectorAll('main svg').length") >= 6


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_nothing_is_wider_than_the_window(
    server: ThreadingHTTPServer, store: Store, browse: Callable[[str, int], Browser]
):
    for run in STUDY.runs()[:7]:
        end(store, run)
    page = browse(address(server), 320)
    page.wait("document.querySelectorAll('main svg').length >= 6")
    for width in (320, 390, 760, 800, 850, 1180, 1181, 1400):
        page.send("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        assert page("document.documentElement.scrollWidth") <= width
        inner, outer = page("[...document.querySelectorAll('.table')].map(t => [t.scrollWidth, t.clientWidth])")[0]
        assert inner <= outer, width
