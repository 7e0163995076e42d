"""The report as a page that renews itself: over real sockets."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_dirs import begun

from pentad.errors import UserError
from pentad.record.metrics import MetricsLog
from pentad.record.run_dir import RunDir
from pentad.record.serving import ReportServer


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[RunDir]:
    with begun(tmp_path / "run", "experiment:\n  name: served\n") as made:
        yield made


@pytest.fixture
def server(run_dir: RunDir) -> Iterator[ReportServer]:
    served = ReportServer(run_dir, 0)
    thread = threading.Thread(target=served.serve, daemon=True)
    thread.start()
    yield served
    served.close()
    thread.join(10)
    assert not thread.is_alive()


def get(server: ReportServer, path: str = "", host: str | None = None) -> str:
    request = urllib.request.Request(server.url + path, headers={"Host": host} if host else {})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


def test_the_page_follows_the_run(server: ReportServer, run_dir: RunDir) -> None:
    assert "No report yet" in get(server)
    before = json.loads(get(server, "state"))
    log = MetricsLog(run_dir)
    log.write(1, {"reward/mean": 0.25})
    after = json.loads(get(server, "state"))
    assert after["state"] != before["state"] and not after["ended"]
    page = get(server)
    assert "served" in page and "0.250" in page and "<script>" in page
    assert get(server) == page
    log.write(2, {"reward/mean": 0.75})
    log.close()
    assert "0.250 → 0.750" in get(server)
    run_dir.end("finished", 1.0, 2)
    assert json.loads(get(server, "state"))["ended"]
    assert not run_dir.report.exists(), "nothing is written"


def test_only_this_machine_is_answered(server: ReportServer) -> None:
    assert server.url.startswith("http://127.0.0.1:")
    for path, host, code in (("", "attacker.example", 403), ("", "attacker.example:8765", 403), ("etc", None, 404)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(server, path, host)
        assert refused.value.code == code
    assert "No report yet" in get(server, host="localhost:1")


def test_a_port_that_is_taken(server: ReportServer, run_dir: RunDir) -> None:
    port = int(server.url.rstrip("/").rpartition(":")[2])
    with pytest.raises(UserError, match=f"--port {port}: Address already in use"):
        ReportServer(run_dir, port)
