"""Checkpoints are read whole or refused by name, and written whole or not at all."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from rollout_models import CONFIGS
from safetensors.torch import load_file, save_file
from tiny import DENSE, ragged_batch, transformers_logprobs
from torch import Tensor
from transformers import AutoModelForCausalLM

from pentad.errors import UserError
from pentad.weights.hf_files import CheckpointReader, write_checkpoint
from pentad.weights.mapping import expected_shapes

Tensors = dict[str, Tensor]


@pytest.fixture
def copy_of(tiny_models, tmp_path) -> Callable[[str], Path]:
    """A copy of a tiny model's directory, to spoil."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(tiny_models(name).directory, tmp_path / name))

    return copy


def spoil(directory: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def check(directory: Path, family: str) -> None:
    config = DENSE[family]
    CheckpointReader(directory).check(expected_shapes(config), tied=config.tie_word_embeddings)


def refusal(directory: Path, family: str) -> str:
    with pytest.raises(UserError) as caught:
        check(directory, family)
    assert str(directory) in caught.value.cause
    assert caught.value.fix
    return caught.value.cause


@pytest.mark.parametrize("family", DENSE)
def test_what_transformers_saved_is_complete(family, tiny_models):
    check(tiny_models(family).directory, family)


def test_missing_tensor(copy_of):
    directory = copy_of("qwen2")
    spoil(directory, lambda tensors: tensors.__delitem__("model.layers.1.self_attn.k_proj.bias"))
    assert "missing tensor model.layers.1.self_attn.k_proj.bias" in refusal(directory, "qwen2")


def test_unexpected_tensor(copy_of):
    directory = copy_of("qwen2")
    spoil(directory, lambda tensors: tensors.update({"model.layers.0.self_attn.o_proj.bias": torch.zeros(48)}))
    assert "unexpected tensor model.layers.0.self_attn.o_proj.bias" in refusal(directory, "qwen2")


def test_misshapen_tensor(copy_of):
    directory = copy_of("llama")
    spoil(directory, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(47)}))
    assert "tensor model.norm.weight has shape [47], expected [48]" in refusal(directory, "llama")


def test_many_problems_are_counted(copy_of):
    directory = copy_of("llama")
    spoil(directory, lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.1" in name])
    cause = refusal(directory, "llama")
    assert cause.count("missing tensor") == 8
    assert "and 1 more" in cause


@pytest.mark.parametrize("left", [4, 100, 20_000])
def test_truncated_file(copy_of, left):
    directory = copy_of("llama")
    os.truncate(directory / "model.safetensors", left)
    assert "cannot read" in refusal(directory, "llama")


def test_file_that_is_not_safetensors(copy_of):
    directory = copy_of("llama")
    (directory / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "cannot read" in refusal(directory, "llama")


def test_no_weights(copy_of):
    directory = copy_of("llama")
    (directory / "model.safetensors").unlink()
    assert "holds no *.safetensors file" in refusal(directory, "llama")


def test_index_that_names_a_missing_file(copy_of):
    directory = copy_of("llama")
    weight_map = dict.fromkeys(load_file(directory / "model.safetensors"), "model.safetensors")
    weight_map["lm_head.weight"] = "model-00002-of-00002.safetensors"
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "lacks model-00002-of-00002.safetensors" in refusal(directory, "llama")


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": 3}'])
def test_index_that_cannot_be_read(copy_of, text):
    directory = copy_of("llama")
    (directory / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in refusal(directory, "llama")


def test_tied_checkpoint_with_its_own_output_layer(copy_of):
    directory = copy_of("llama_tied")

    def untie(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

    spoil(directory, untie)
    assert "different lm_head.weight" in refusal(directory, "llama_tied")


def test_tied_checkpoint_with_an_equal_copy_is_accepted(copy_of):
    directory = copy_of("llama_tied")

    def repeat(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    spoil(directory, repeat)
    check(directory, "llama_tied")


def test_rotary_buffers_of_old_checkpoints_are_overlooked(copy_of):
    directory = copy_of("llama")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    spoil(directory, lambda tensors: tensors.update({name: torch.zeros(6)}))
    check(directory, "llama")


def test_experts_are_expected_by_their_checkpoint_names():
    shapes = expected_shapes(CONFIGS["qwen3_moe"])
    assert shapes["model.layers.1.mlp.experts.3.up_proj.weight"] == (32, 48)


def stored(directory: Path) -> Iterator[tuple[str, Tensor]]:
    reader = CheckpointReader(directory)
    return ((name, reader.get(name)) for name in reader.shapes)


def export(source: Path, target: Path, **options: int) -> None:
    write_checkpoint(
        stored(source), target, [source / "generation_config.json"], (source / "config.json").read_text(), **options
    )


@pytest.mark.parametrize("shard_bytes, files", [(4 << 30, 1), (30_000, 8)])
def test_transformers_loads_what_was_written(tiny_models, tmp_path, shard_bytes, files):
    source, target = tiny_models("llama_tied"), tmp_path / "export"
    export(source.directory, target, shard_bytes=shard_bytes)
    written = sorted(path.name for path in target.glob("*.safetensors"))
    assert len(written) == files
    assert all(sum(t.nbytes for t in load_file(target / name).values()) <= shard_bytes for name in written)
    assert (target / "model.safetensors.index.json").is_file() == (files > 1)
    assert (target / "generation_config.json").is_file()
    model, loading = AutoModelForCausalLM.from_pretrained(target, output_loading_info=True)
    assert not any(loading.values()), loading
    batch = ragged_batch()
    with torch.no_grad():
        for one, other in zip(*(transformers_logprobs(m, batch) for m in (model.eval(), source.model)), strict=True):
            assert torch.equal(one, other)


def test_weights_may_be_read_by_whoever_may_read_the_directory(tmp_path):
    write_checkpoint([("a", torch.zeros(2))], tmp_path / "export", [], "{}")
    files = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "export").iterdir()}
    assert files["model.safetensors"] == files["config.json"]


def test_an_existing_target_is_not_touched(tiny_models, tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "precious").touch()
    with pytest.raises(UserError, match="exists already"):
        export(tiny_models("llama").directory, tmp_path / "export")
    assert [path.name for path in tmp_path.rglob("*")] == ["export", "precious"]


def test_remains_of_a_killed_export_do_not_hinder(tiny_models, tmp_path):
    (tmp_path / "export.partial").mkdir()
    (tmp_path / "export.partial" / "shard-0").write_text("half")
    export(tiny_models("llama").directory, tmp_path / "export")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export"]
    assert not (tmp_path / "export" / "shard-0").exists()


def test_a_failing_source_leaves_no_target(tiny_models, tmp_path):
    def broken() -> Iterator[tuple[str, Tensor]]:
        yield next(stored(tiny_models("llama").directory))
        raise ConnectionError("a rank died")

    with pytest.raises(ConnectionError):
        write_checkpoint(broken(), tmp_path / "export", [], "{}")
    assert not (tmp_path / "export").exists()


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 100 KB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("cannot mount a small file system here")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_is_named_and_nothing_is_left(tiny_models, small_disk):
    with pytest.raises(UserError, match=r"cannot write the model to .*: No space left") as caught:
        export(tiny_models("llama").directory, small_disk / "export", shard_bytes=30_000)
    assert "free space" in caught.value.fix
    assert not list(small_disk.iterdir())
