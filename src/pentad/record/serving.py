"""The report of a run that goes on, as a page that renews itself.

Invariant: only this machine is served, and only names of this machine are answered to, so that no page of another site
reads the run through a browser. The page is made again only when the run's files have changed.
"""

import json
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from markupsafe import escape

from pentad.errors import UserError
from pentad.record.report import render_report
from pentad.record.run_dir import RunDir

HOST = "127.0.0.1"
_NAMES = ("127.0.0.1", "localhost", "[::1]")
_EVERY_MS = 3000
_RENEWAL = """<script>
(() => {
  let state = null, failed = false;
  const note = document.createElement("p");
  note.className = "soft small"; note.style.cssText = "position:fixed;right:.75rem;bottom:.5rem;margin:0";
  note.setAttribute("role", "status");
  document.body.append(note);
  const keys = () => [...document.querySelectorAll("main details")].map(each => each.open);
  async function renew() {
    try {
      const answer = await (await fetch("/state", {cache: "no-store"})).json();
      if (state !== null && answer.state !== state) {
        const text = await (await fetch("/", {cache: "no-store"})).text();
        const page = new DOMParser().parseFromString(text, "text/html"), open = keys(), top = window.scrollY;
        document.querySelector("main").replaceWith(page.querySelector("main"));
        document.querySelectorAll("main details").forEach((each, place) => { if (open[place]) each.open = true; });
        window.scrollTo(0, top);
      }
      state = answer.state; failed = false;
      note.textContent = answer.ended ? "" : "renews itself";
    } catch (error) { note.textContent = "no longer renewed: the command has ended"; failed = true; }
    setTimeout(renew, failed ? 10 * EVERY : EVERY);
  }
  renew();
})();
</script>
""".replace("EVERY", str(_EVERY_MS))


class ReportServer:
    """Serves the report of one run directory.

    Args:
        port: 0 takes any free one.

    Raises:
        UserError: the port is taken.
    """

    def __init__(self, run_dir: RunDir, port: int) -> None:
        self._run_dir = run_dir
        self._lock = threading.Lock()
        self._made: tuple[str, str] | None = None
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: the terminal is for what the user is to see."""

        try:
            self._server = ThreadingHTTPServer((HOST, port), Handler)
        except OSError as error:
            raise UserError(
                f"--port {port}: {error.strerror or error}", "choose another --port; 0 takes any free one"
            ) from None
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self._server.server_address[1]}/"

    def serve(self) -> None:
        """Serve until `close` is called from another thread, or this one is interrupted."""
        self._server.serve_forever(poll_interval=0.2)

    def close(self) -> None:
        """Stop serving, and give the port back."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        host = (request.headers.get("Host") or "").rpartition(":")[0] or request.headers.get("Host") or ""
        if host not in _NAMES:
            _send(request, HTTPStatus.FORBIDDEN, "text/plain", "this page is for this machine alone\n")
        elif request.path == "/":
            _send(request, HTTPStatus.OK, "text/html", self._page())
        elif request.path == "/state":
            state = {"state": _state(self._run_dir), "ended": self._run_dir.outcome.exists()}
            _send(request, HTTPStatus.OK, "application/json", json.dumps(state))
        elif request.path == "/favicon.ico":
            _send(request, HTTPStatus.NO_CONTENT, "image/x-icon", "")
        else:
            _send(request, HTTPStatus.NOT_FOUND, "text/plain", "there is only /\n")

    def _page(self) -> str:
        with self._lock:  # drawing is not for several threads
            state = _state(self._run_dir)
            if self._made is None or self._made[0] != state:
                try:
                    html = render_report(self._run_dir)
                except UserError as error:
                    html = _waiting(self._run_dir.path, error)
                self._made = (state, html.replace("</body>", f"{_RENEWAL}</body>"))
            return self._made[1]


def _state(run_dir: RunDir) -> str:
    """Changes whenever a file that the report is made from does."""
    files = (run_dir.metrics, run_dir.samples, run_dir.spans, run_dir.distributions, run_dir.outcome, run_dir.config)
    parts = []
    for file in files:
        try:
            stat = file.stat()
            parts.append(f"{stat.st_size}-{stat.st_mtime_ns}")
        except OSError:
            parts.append("")
    return " ".join(parts)


def _waiting(path: Path, error: UserError) -> str:
    """A page for a run without a finished step."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>pentad</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        'content="light dark"><style>body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem; '
        "overflow-wrap: anywhere; }</style></head><body><main><h1>"
        f"{escape(path)}</h1><p>No report yet: {escape(error.cause)}</p></main></body></html>"
    )


def _send(request: BaseHTTPRequestHandler, status: HTTPStatus, kind: str, text: str) -> None:
    body = text.encode("utf-8", errors="backslashreplace")
    try:
        request.send_response(status)
        request.send_header("Content-Type", f"{kind}; charset=utf-8")
        request.send_header("Content-Length", str(len(body)))
        request.send_header("Cache-Control", "no-store")
        request.end_headers()
        request.wfile.write(body)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the reader has gone
