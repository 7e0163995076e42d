"""What a checkpoint says of itself.

Invariant: a manifest lists every other file of its checkpoint with size and SHA-256, and has a checksum of its own, so
a file that is cut short, changed or missing is found before any of it is used.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pentad.errors import UserError

FORMAT = 1
NAME = "manifest.json"
_THREADS = 8


@dataclass(frozen=True)
class FileRecord:
    """A file of a checkpoint.

    Attributes:
        name: relative to the checkpoint.
        sha256: hexadecimal digits.
    """

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is of.

    Attributes:
        step: the last step that is in it.
        version: of the weights.
        roles: what was trained, as `policy`.
        files: all files but the manifest.
        model: facts of the model, and where it was read from.
        data: what identifies the rows that are trained on.
        settings: the effective settings, nested as in the settings file.
        software: versions of packages.
        metrics: of the step.
        run: what the run must know of itself, as the number of restarts.
        format: of the files.
    """

    step: int
    version: int
    roles: tuple[str, ...]
    files: tuple[FileRecord, ...]
    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    software: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def bytes(self) -> int:
        """Of all files but the manifest."""
        return sum(file.bytes for file in self.files)


class DamagedError(UserError):
    """A checkpoint is incomplete, or not what was written."""


def write_manifest(manifest: Manifest, directory: Path) -> None:
    """Write it into the directory of its checkpoint and sync it to the disk."""
    body = json.dumps(asdict(manifest), sort_keys=True, allow_nan=False)
    text = json.dumps({"manifest": json.loads(body), "sha256": _digest(body)}, indent=1, sort_keys=True)
    with (directory / NAME).open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_manifest(directory: Path) -> Manifest:
    """What a checkpoint says of itself; its files are not looked at.

    Raises:
        DamagedError: the manifest is missing or damaged.
        UserError: it was written by a later version of Pentad.
    """
    path = directory / NAME
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        body, digest = read["manifest"], read["sha256"]
        if body["format"] > FORMAT:
            raise UserError(
                f"checkpoint {directory} has format {body['format']}; this version of Pentad reads up to {FORMAT}",
                "upgrade Pentad, or take a checkpoint that this version has written",
            )
        if _digest(json.dumps(body, sort_keys=True, allow_nan=False)) != digest:
            raise _damaged(directory, f"{NAME} was changed after it was written")
        fields: dict[str, Any] = {**body, "roles": tuple(body["roles"])}
        fields["files"] = tuple(FileRecord(**record) for record in body["files"])
        return Manifest(**fields)
    except FileNotFoundError:
        raise _damaged(directory, f"it has no {NAME}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(directory, f"{NAME} cannot be read: {error}") from None


def check_files(directory: Path, manifest: Manifest, *, contents: bool = True) -> None:
    """Whether all files are there as they were written.

    Args:
        contents: compare checksums, which reads everything; otherwise sizes only.

    Raises:
        DamagedError: they are not; it names the files.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        problems = [
            found for found in threads.map(lambda file: _fault(directory, file, contents), manifest.files) if found
        ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise _damaged(directory, "; ".join(problems[:3]) + more)


def record_file(directory: Path, name: str) -> FileRecord:
    """The record of a file that is written; reads it, and syncs it to the disk."""
    path = directory / name
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return FileRecord(name, path.stat().st_size, _file_digest(path))


def sync(path: Path) -> None:
    """Have what was written to a file on the disk, where there is such a file."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _fault(directory: Path, file: FileRecord, contents: bool) -> str | None:
    path = directory / file.name
    try:
        size = path.stat().st_size
        if size != file.bytes:
            return f"{file.name} has {size} bytes, not {file.bytes}"
        if contents and _file_digest(path) != file.sha256:
            return f"{file.name} is not what was written (SHA-256 differs)"
    except FileNotFoundError:
        return f"{file.name} is missing"
    except OSError as error:
        return f"{file.name} cannot be read: {error.strerror}"
    return None


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _damaged(directory: Path, reason: str) -> DamagedError:
    return DamagedError(
        f"checkpoint {directory} is damaged: {reason}", "take another checkpoint; remove this one when it is not needed"
    )


def differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Lines `name: value then -> value now` of nested settings that differ."""
    for name in dict.fromkeys([*then, *now]):
        left, right = then.get(name), now.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            yield from differences(left, right, f"{prefix}{name}.")
        elif left != right:
            yield f"{prefix}{name}: {_shown(left)} -> {_shown(right)}"


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)
