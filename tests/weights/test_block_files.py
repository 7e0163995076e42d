"""Files of blocks are read whatever rectangles they hold, or refused by name; what cannot be written is told."""

import errno
import json
import os
import resource
import signal
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pentad.errors import UserError
from pentad.weights.block_files import BlockReader, FileRecord, WriteError, write_blocks
from pentad.weights.blocks import Block, cut

MATRIX = torch.arange(60, dtype=torch.float32).view(10, 6) + 0.1
NORM = torch.arange(7, dtype=torch.float32) - 3.3


def whole(name: str, tensor: Tensor) -> Block:
    shape = tuple(tensor.shape)
    return Block(name, shape, (0,) * len(shape), shape, 0)


def pieces(kind: str, name: str, tensor: Tensor, start: int, stop: int) -> list[tuple[str, Block, Tensor]]:
    """The elements `start` to `stop` of a tensor."""
    return [(kind, part, tensor.view(-1)[part.start : part.stop]) for part in cut(whole(name, tensor), start, stop)]


def write_two(directory: Path) -> list[FileRecord]:
    """A matrix cut in the middle of a row over two files, and a vector in the second; moments of the vector only."""
    directory.mkdir(exist_ok=True)
    first = pieces("weight", "matrix", MATRIX, 0, 27)
    second = pieces("weight", "matrix", MATRIX, 27, 60) + pieces("weight", "norm", NORM, 0, 7)
    second += pieces("exp_avg", "norm", NORM * 2, 0, 3) + pieces("exp_avg", "norm", NORM * 2, 3, 7)
    return [write_blocks(directory / f"rank-0000{i}.safetensors", part) for i, part in enumerate((first, second))]


def test_what_was_written_is_read(tmp_path):
    records = write_two(tmp_path)
    for record in records:
        data = (tmp_path / record.name).read_bytes()
        assert record == FileRecord(record.name, len(data), sha256(data).hexdigest())
    reader = BlockReader(tmp_path)
    assert sorted(reader.names("weight")) == ["matrix", "norm"] and reader.names("exp_avg") == ["norm"]
    assert reader.shapes == {"matrix": (10, 6), "norm": (7,)} and reader.shape("exp_avg", "norm") == (7,)
    assert reader.dtype("weight", "matrix") == torch.float32
    assert torch.equal(reader.get("matrix"), MATRIX) and torch.equal(reader.get("norm"), NORM)
    reader.check({"matrix": (10, 6), "norm": (7,)}, tied=False)
    with pytest.raises(UserError, match=r"missing tensor bias"):
        reader.check({"matrix": (10, 6), "norm": (7,), "bias": (1,)}, tied=False)


def test_any_rectangle_is_read(tmp_path):
    write_two(tmp_path)
    reader = BlockReader(tmp_path)
    for first in range(10):
        for last in range(first + 1, 11):
            for left, right in ((0, 6), (0, 1), (2, 5), (5, 6)):
                out = torch.full((last - first, right - left), torch.nan)
                reader.read("weight", Block("matrix", (10, 6), (first, left), tuple(out.shape), 5), out)
                assert torch.equal(out, MATRIX[first:last, left:right])
    rounded = torch.empty(4, dtype=torch.bfloat16)
    reader.read("exp_avg", Block("norm", (7,), (2,), (4,), 0), rounded)
    assert torch.equal(rounded, (NORM * 2)[2:6].to(torch.bfloat16))


def test_other_readers_of_safetensors_read_them(tmp_path):
    write_two(tmp_path)
    held = load_file(tmp_path / "rank-00000.safetensors")
    assert {name: tuple(value.shape) for name, value in held.items()} == {
        "weight/matrix@0,0": (4, 6),
        "weight/matrix@4,0": (1, 3),
    }
    assert torch.equal(held["weight/matrix@4,0"], MATRIX[4:5, :3])


def test_progress_counts_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("pentad.weights.safetensors_writer._CHUNK_BYTES", 64)
    seen: list[int] = []
    record = write_blocks(tmp_path / "a.safetensors", pieces("weight", "matrix", MATRIX, 0, 60), seen.append)
    assert len(seen) > 4 and seen == sorted(seen) and seen[-1] == record.bytes
    assert torch.equal(BlockReader(tmp_path).get("matrix"), MATRIX)


def test_a_file_of_nothing(tmp_path):
    write_two(tmp_path)
    write_blocks(tmp_path / "rank-00002.safetensors", [])
    assert torch.equal(BlockReader(tmp_path).get("matrix"), MATRIX)


def refusal(directory: Path, use: Callable[[BlockReader], object] = lambda reader: reader.get("matrix")) -> str:
    with pytest.raises(UserError) as caught:
        use(BlockReader(directory))
    assert caught.value.fix and str(directory) in caught.value.cause
    return caught.value.cause


def edit_header(path: Path, change: Callable[[dict], object]) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def test_damaged_files_are_named(tmp_path):
    write_two(tmp_path)
    path = tmp_path / "rank-00001.safetensors"
    sound = path.read_bytes()
    for size, said in (
        (len(sound) - 1, f"it has {len(sound) - 1} bytes instead of {len(sound)}"),
        (100, "it has 100 bytes, and its header would have"),
        (5, "it has 5 bytes"),
        (0, "it has 0 bytes"),
    ):
        path.write_bytes(sound[:size])
        cause = refusal(tmp_path)
        assert str(path) in cause and said in cause
    path.write_bytes(sound + b"\0")
    assert f"instead of {len(sound)}" in refusal(tmp_path)
    path.write_bytes(sound[:8] + b"\0" + sound[9:])
    assert str(path) in refusal(tmp_path)
    for change, said in (
        (lambda header: header["weight/norm@0"].update(shape=[8]), "a part of norm is outside of its shape [7]"),
        (lambda header: header["weight/norm@0"].update(dtype="F64"), "weight/norm@0"),
        (lambda header: header["weight/norm@0"].update(dtype="X"), "X"),
        (lambda header: header.update(nothing=header.pop("weight/norm@0")), "cannot read"),
        (lambda header: header.pop("weight/norm@0"), "is not where its header says"),
        (lambda header: header.pop("__metadata__"), "no file of a checkpoint"),
    ):
        path.write_bytes(sound)
        edit_header(path, change)
        cause = refusal(tmp_path)
        assert str(path) in cause and said in cause
    path.unlink()
    assert "33 of 60 elements of the weight of matrix are missing" in refusal(tmp_path)
    (tmp_path / "rank-00000.safetensors").unlink()
    assert "holds no *.safetensors file" in refusal(tmp_path)


def test_a_flipped_byte_changes_the_digest(tmp_path):
    """That is all that shows it: the driver compares the digests of files with the manifest's."""
    record = write_two(tmp_path)[0]
    data = bytearray((tmp_path / record.name).read_bytes())
    data[-3] ^= 1
    assert sha256(data).hexdigest() != record.sha256
    (tmp_path / record.name).write_bytes(data)
    assert not torch.equal(BlockReader(tmp_path).get("matrix"), MATRIX)


def test_tensors_that_are_not_there_as_asked_for(tmp_path):
    write_two(tmp_path)
    assert "has no weight of bias" in refusal(tmp_path, lambda reader: reader.get("bias"))
    assert "has no exp_avg of matrix" in refusal(tmp_path, lambda reader: reader.dtype("exp_avg", "matrix"))
    asked = Block("matrix", (12, 6), (0, 0), (1, 6), 0)
    said = refusal(tmp_path, lambda reader: reader.read("weight", asked, torch.empty(1, 6)))
    assert "matrix has shape [10, 6], the model needs [12, 6]" in said
    write_blocks(tmp_path / "other.safetensors", pieces("weight", "matrix", MATRIX, 12, 18))
    assert "elements of the weight of matrix are stored twice" in refusal(tmp_path)
    write_blocks(tmp_path / "other.safetensors", pieces("weight", "norm", NORM[:5].clone(), 0, 5))
    assert "norm has shape" in refusal(tmp_path)
    save_file({"weight/norm@0": NORM}, tmp_path / "other.safetensors")
    assert "no file of a checkpoint" in refusal(tmp_path)


def test_what_is_wrong_with_items_is_our_fault(tmp_path):
    path, block = tmp_path / "a.safetensors", whole("norm", NORM)
    for items in ([("weight", block, NORM[:3])], [("weight", block, NORM)] * 2, [("weight", block, MATRIX[:7, 0])]):
        with pytest.raises(ValueError, match=r"norm|contiguous"):
            write_blocks(path, items)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(tmp_path):
    path = tmp_path / "rank-00000.safetensors"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError) as caught:
        write_blocks(path, pieces("weight", "matrix", MATRIX, 0, 60))
    error = WriteError.of(caught.value, path)
    assert error.errno == errno.ENOSPC and error.is_full and error.fix == "free space there"
    assert str(path) in error.cause and "No space left on device" in error.cause and os.uname().nodename in error.cause


def test_a_file_that_may_not_grow(tmp_path):
    """In mid-file, as a quota would stop it; and it is another error where nothing may be written at all."""
    path = tmp_path / "rank-00000.safetensors"
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            write_blocks(path, pieces("weight", "matrix", MATRIX, 0, 60))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert WriteError.of(caught.value, path).is_full and path.stat().st_size == 300
    with pytest.raises(OSError) as caught:
        write_blocks(tmp_path / "nowhere" / "a.safetensors", [])
    error = WriteError.of(caught.value, path)
    assert not error.is_full and error.errno == errno.ENOENT and "permissions" in error.fix
