"""`pentad doctor` describes any environment; nothing in it ends in a traceback."""

from importlib import metadata

import pytest

from pentad.cli import doctor
from pentad.cli.main import main

REAL = metadata.version


def broken(name: str) -> str | None:
    """Metadata of some packages is gone, that of another has no version, as half-removed installations have it."""
    if name in ("pentad", "safetensors"):
        raise metadata.PackageNotFoundError(name)
    return None if name == "pyarrow" else REAL(name)


@pytest.fixture(autouse=True)
def few_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", broken)
    monkeypatch.setattr("pentad.cli.main.version", broken)
    monkeypatch.setattr(doctor, "_NEEDED", {"torch": "torch", "safetensors": "safetensors", "pyarrow": "pyarrow"})
    monkeypatch.setenv("COLUMNS", "200")


def test_packages_without_metadata(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor"])
    said = capsys.readouterr()
    assert (code, said.err) == (0, "")
    assert "pentad (version unknown" in said.out
    rows = {line.split()[0]: line.split()[1:] for line in said.out.splitlines() if line.strip()}
    assert rows["safetensors"] == ["unknown", "ok"] and rows["pyarrow"] == ["unknown", "ok"]
    assert rows["torch"] == [REAL("torch"), "ok"]
    assert "All that Pentad needs is there." in said.out


def test_a_package_that_is_not_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_NEEDED", {"no-such-package": "no_such_package"})
    assert main(["doctor"]) == 1
    assert "not installed" in capsys.readouterr().out


def test_version_without_metadata(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code in (0, None)
    assert "unknown version" in capsys.readouterr().out
