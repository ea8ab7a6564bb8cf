"""`untuned watch`: a page on this machine that follows a study while it runs, with its report as far as it has come."""

import hashlib
import http.server
import json
import sqlite3
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from untuned.study.config import Run, Study

LATEST = 8  # results shown
PATIENCE = 10  # times as long as drawing the report took passes before it is drawn again: a study needs the cores


def watch(
    folder: Annotated[Path, typer.Argument(help="Folder of a study, running or not.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0 takes a free one.")] = 0,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
) -> None:
    """Follow a study on a page of this machine that keeps itself up to date. Ctrl-C ends it, the study goes on."""
    import webbrowser

    with serve(folder, port) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        print(f"{folder}: {url} (Ctrl-C ends the page, not the study)", flush=True)
        if open_browser:
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def serve(folder: Path, port: int = 0) -> http.server.ThreadingHTTPServer:
    """A server of the page, bound to 127.0.0.1 alone; call `serve_forever()` on it. Port 0 takes a free one.

    `/` is the page, `/state` the progress as JSON, `/report` the report as far as the study has come, empty (204) if
    `?have=` names its version. Raises StudyError if there is no study in the folder or the port is taken.
    """
    from untuned.study.config import StudyError

    try:
        return _Server(("127.0.0.1", port), _Follower(folder))
    except OSError as error:
        raise StudyError(f"port {port} cannot be used ({error}); choose another --port") from error


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], follower: "_Follower") -> None:
        self.follower = follower
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a page that was closed while it loaded
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        follower = self.server.follower
        # A page elsewhere whose name was made to lead to this machine shall not read the study.
        if self.headers.get("Host", "").rsplit(":", 1)[0] not in ("127.0.0.1", "localhost"):
            self.send_error(403)
            return
        path, _, query = self.path.partition("?")
        if path == "/":
            self._answer(_page(), "text/html")
        elif path == "/state":
            self._answer(json.dumps(follower.state()), "application/json")
        elif path == "/report":
            version, page = follower.report()
            self._answer("" if query == f"have={version}" else page, "text/html", version)
        else:
            self.send_error(404)

    def _answer(self, text: str, kind: str, version: str = "") -> None:
        body = text.encode()
        self.send_response(200 if body else 204)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Version", version)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (its name there)
        pass


def _page() -> str:
    return (Path(__file__).parent / "templates" / "watch.html").read_text(encoding="utf-8")


class _Follower:
    """What is known of the study in a folder; may be asked from several threads."""

    def __init__(self, folder: Path) -> None:
        from untuned.study.store import Store

        self.folder = folder
        Store(folder)  # refuses a folder without a study
        self._known: tuple[Study, dict[str, Run]] | None = None
        self._drawing = threading.Lock()
        self._drawn, self._next, self._html = "", 0.0, ""

    def state(self) -> dict[str, Any]:
        """Counts, running runs, latest results, why runs crashed, and `version`, which changes with the ledger."""
        from untuned.study.config import StudyError
        from untuned.study.store import Store

        try:
            store = Store(self.folder)
            return self._state(store.study, store.runs().to_pylist())
        except (StudyError, OSError) as error:
            return {"problem": str(error)}

    def report(self) -> tuple[str, str]:
        """Version and text of the report's page, drawn again if the ledger has changed and enough time has passed."""
        from untuned.study import report, results
        from untuned.study.config import StudyError

        with self._drawing:
            version = self.state().get("version", "")
            if version and version != self._drawn and time.monotonic() >= self._next:
                begin = time.monotonic()
                try:
                    found = results.load(self.folder)
                    self._html = report.html(found)
                    self._drawn = version
                except (StudyError, OSError):  # the folder went away: keep what there is
                    pass
                end = time.monotonic()
                self._next = end + PATIENCE * (end - begin)
            return self._drawn, self._html

    def _state(self, study: "Study", rows: list[dict[str, Any]]) -> dict[str, Any]:
        from untuned.study.live import time_left
        from untuned.study.results import crashes, last_line

        runs = self._runs(study)
        rows = [row for row in rows if row["run"] in runs]
        ended = sorted((r for r in rows if r["status"] != "running"), key=lambda r: r["started"] + (r["seconds"] or 0))
        counts = {s: sum(row["status"] == s for row in rows) for s in ("done", "diverged", "crashed")}
        remaining = len(runs) - len(ended)
        alive = remaining > 0 and _is_written(self.folder)
        running = [row for row in rows if row["status"] == "running"] if alive else []
        over = {row["run"] for row in ended}
        waiting = [run.task for key, run in runs.items() if key not in over]
        metrics = {task.name: task.metric for task in study.tasks}

        def told(row: dict[str, Any]) -> str:
            if row["status"] == "done":
                metric = metrics[row["task"]]
                return f"{metric} {json.loads(row['final'])[metric]:.4g}"
            return f"{row['status']}: {last_line(row['error'])}"

        marks = "".join(f"{row['run']}{row['status']}{row['started']}" for row in rows)
        return {
            "folder": str(self.folder),
            "version": hashlib.sha256(f"{study.id}{marks}".encode()).hexdigest()[:16],
            "total": len(runs),
            **counts,
            "running": [{"run": str(runs[r["run"]]), "seconds": time.time() - r["started"]} for r in running],
            "left": remaining - len(running),
            "time_left": time_left(ended, waiting, max(1, len(running))) if alive else None,
            "phase": "finished" if not remaining else "running" if alive else "begun" if rows else "waiting",
            "latest": [
                {"run": str(runs[r["run"]]), "status": r["status"], "told": told(r), "seconds": r["seconds"]}
                for r in ended[: -LATEST - 1 : -1]
            ],
            "crashes": crashes(rows),
        }

    def _runs(self, study: "Study") -> dict[str, "Run"]:
        known = self._known
        if known is None or known[0] != study:  # a study may grow while it is watched
            self._known = known = (study, {run.id: run for run in study.runs()})
        return known[1]


def _is_written(folder: Path) -> bool:
    """Whether a process is at work on the study: it holds `.lock`, an SQLite transaction that dies with it."""
    try:
        with closing(sqlite3.connect(f"{(folder / '.lock').absolute().as_uri()}?mode=ro", uri=True, timeout=0)) as lock:
            lock.execute("select * from sqlite_master").fetchall()
    except sqlite3.OperationalError as error:
        return error.sqlite_errorcode == sqlite3.SQLITE_BUSY
    except sqlite3.Error:
        pass
    return False
