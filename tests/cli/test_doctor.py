"""`pentad doctor` describes any environment; nothing in it ends in a traceback."""

import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
# Metadata of one package is gone, that of another has no version, as half-removed installations have it.
BROKEN = """
import importlib.metadata as metadata
real = metadata.version
def version(name):
    if name in ("pentad", "safetensors"):
        raise metadata.PackageNotFoundError(name)
    return None if name == "math-verify" else real(name)
metadata.version = version
from pentad.cli.main import main
raise SystemExit(main(ARGUMENTS))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = BROKEN.replace("ARGUMENTS", repr(list(arguments)))
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "COLUMNS": "200"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)


def test_packages_without_metadata() -> None:
    result = run("doctor")
    assert (result.returncode, result.stderr) == (0, "")
    assert "pentad (version unknown" in result.stdout
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.strip()}
    assert rows["safetensors"] == ["unknown", "ok"] and rows["math-verify"] == ["unknown", "ok"]
    assert "All that Pentad needs is there." in result.stdout


def test_version_without_metadata() -> None:
    result = run("--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert "unknown version" in result.stdout
