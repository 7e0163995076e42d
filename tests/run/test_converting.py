"""Models become checkpoints and models again, bit for bit; a checkpoint is a model to train from.

transformers' own files are the oracle of what comes back, and real ranks that of which rank holds what.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Command
from quickstart import REPOSITORY
from ranks import Rank, run_on
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor

from pentad.cli.main import main
from pentad.errors import UserError
from pentad.layout import Layout
from pentad.record.checkpoints import sound
from pentad.run.converting import Wanted, convert_model
from pentad.run.resume import load_resume
from pentad.weights.source import resolve_model


def convert(source: Path, out: Path, **options: Any) -> Path:
    convert_model(str(source), Wanted(out, **options), warn=pytest.fail)
    return out


# Biases; padding of the vocabulary of 97; a tied embedding; experts by two splits, with a dense layer between.
WAYS = [
    ("qwen2", "t4", "p2"),
    ("llama_tied", "t2p2", "d8"),
    ("qwen2_moe_dense", "d2e2", "(attn:t2p2|ffn:t2)"),
    ("mixtral", "megatron:(attn:d2t2|ffn:e2t2)", "d2e2"),
]


@pytest.mark.parametrize(("family", "layout", "other"), WAYS, ids=[way[0] for way in WAYS])
def test_there_and_back(family, layout, other, tiny_models, tmp_path):
    model = tiny_models(family).directory
    first = convert(model, tmp_path / "first", layout=layout)
    second = convert(first, tmp_path / "second", layout=other)
    for checkpoint in (first, second):
        files = {file.name for file in sound(checkpoint).manifest.files}
        present = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()}
        assert files == present - {"manifest.json"}
        back = convert(checkpoint, tmp_path / f"of-{checkpoint.name}")
        for name in ("model.safetensors", "config.json", "generation_config.json"):
            assert (back / name).read_bytes() == (model / name).read_bytes(), name
    names = [{path.name for path in (checkpoint / "policy").iterdir()} for checkpoint in (first, second)]
    assert names[0] != names[1]
    assert not list(tmp_path.glob(".*"))


def write_and_load(rank: Rank, model: Path, checkpoint: Path, target: Path) -> bool:
    """Write what this rank holds of a model; whether from the checkpoint it takes the same."""
    from pentad.config.schema.megatron import MegatronSettings
    from pentad.trainers.megatron.state import RankState
    from pentad.weights.checkpoint_model import open_weights

    trainer = rank.trainer(model, megatron=MegatronSettings(ddp={"use_distributed_optimizer": False}))
    RankState(trainer).stage().write(target, rank.number)
    before = {name: parameter.data.clone() for name, parameter in trainer.parameters()}
    for parameter in before:
        dict(trainer.parameters())[parameter].data.fill_(7.0)
    trainer.load(open_weights(checkpoint / "hf"))
    return all(torch.equal(parameter, before[name]) for name, parameter in trainer.parameters())


PLACES = [("llama_tied", Layout(tensor=2, pipeline=2)), ("qwen2_moe_dense", Layout(2, 2, expert=2, expert_tensor=2))]


@pytest.mark.parametrize(("family", "layout"), PLACES, ids=[str(layout) for _, layout in PLACES])
def test_files_hold_what_ranks_of_the_layout_write(family, layout, tiny_models, tmp_path):
    model, written = tiny_models(family).directory, tmp_path / "written"
    written.mkdir()
    checkpoint = convert(model, tmp_path / "checkpoint", layout=str(layout))
    assert all(run_on(layout, write_and_load, model, checkpoint, written))
    for number in range(layout.world):
        file = f"rank-{number:05d}.safetensors"
        theirs = load_file(written / file)
        ours = load_file(checkpoint / "policy" / file) if (checkpoint / "policy" / file).exists() else {}
        assert ours.keys() == theirs.keys(), file
        for key, value in theirs.items():
            assert torch.equal(ours[key], value), f"{key} in {file}"


def test_dtypes_are_kept_or_changed_as_asked(tiny_models, tmp_path):
    source = Path(shutil.copytree(tiny_models("qwen2").directory, tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    kept = {"model.norm.weight": torch.float32, "model.embed_tokens.weight": torch.float16}
    mixed: dict[str, Tensor] = {key: value.to(kept.get(key, torch.bfloat16)) for key, value in tensors.items()}
    save_file(mixed, source / "model.safetensors", metadata={"format": "pt"})
    checkpoint = convert(source, tmp_path / "checkpoint", layout="t2")
    back = convert(checkpoint, tmp_path / "back")
    assert (back / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    for cast in (
        convert(checkpoint, tmp_path / "cast", dtype="bf16"),
        convert(convert(source, tmp_path / "bf16", dtype="bf16"), tmp_path / "back-of-bf16"),
    ):
        found = load_file(cast / "model.safetensors")
        assert found.keys() == mixed.keys()
        assert all(torch.equal(found[key], value.to(torch.bfloat16)) for key, value in mixed.items())
        assert json.loads((cast / "config.json").read_text())["dtype"] == "bfloat16"


def test_large_tensors_are_read_in_slabs_and_large_models_written_in_shards(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr("pentad.weights.conversion._SLAB_BYTES", 1000)
    monkeypatch.setattr("pentad.weights.conversion.SHARD_BYTES", 100_000)
    model = tiny_models("qwen2_moe_dense").directory
    back = convert(convert(model, tmp_path / "checkpoint", layout="t2"), tmp_path / "back")
    index = json.loads((back / "model.safetensors.index.json").read_text())["weight_map"]
    shards = sorted(set(index.values()))
    assert len(shards) > 2 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    tensors = load_file(model / "model.safetensors")
    assert index.keys() == tensors.keys()
    for file in shards:
        assert (back / file).stat().st_size < 110_000
        with safe_open(back / file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 - not a dict
                assert torch.equal(handle.get_tensor(name), tensors[name])


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    assert caught.value.fix
    return str(caught.value)


def test_what_cannot_be_converted_is_refused(tiny_models, tmp_path):
    model, out = tiny_models("qwen2").directory, tmp_path / "out"
    checkpoint = convert(model, tmp_path / "run" / "checkpoints" / "step-00000004", layout="t2")

    def said(source: Path | str, **options: Any) -> str:
        return refusal(lambda: convert_model(str(source), Wanted(options.pop("out", out), **options), warn=print))

    assert "SOURCE: there is no directory" in said(tmp_path / "nothing")
    assert "exists already" in said(model, out=model)
    assert "is a Hugging Face model already" in said(model, form="hf")
    assert "--layout is not read together with --to hf" in said(checkpoint, form="hf", layout="t2")
    assert "has rollout engines" in said(model, layout="t2+hf:d1")
    assert "has more than one trainer" in said(model, layout="t2+megatron[critic]:d1")
    assert "--layout t3" in said(model, layout="t3")
    other = Path(shutil.copytree(model, tmp_path / "other"))
    config = json.loads((model / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    assert "is of architecture 'gpt2', which is not supported" in said(other)
    deeper = {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
    (other / "config.json").write_text(json.dumps({**config, **deeper}))
    assert "missing tensor model.layers.2." in said(other)
    tensors = load_file(model / "model.safetensors")
    save_file(
        {**tensors, "model.norm.weight": tensors["model.norm.weight"].to(torch.float8_e4m3fn)},
        other / "model.safetensors",
    )
    (other / "config.json").write_text(json.dumps(config))
    assert "model.norm.weight is stored as F8_E4M3" in said(other)
    assert "holds weights alone" in refusal(lambda: load_resume(sound(checkpoint), None))  # type: ignore[arg-type]
    run = tmp_path / "run"
    assert f"give {checkpoint}" in refusal(lambda: resolve_model(str(run), tmp_path))
    file = checkpoint / "policy" / "rank-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert "rank-00001.safetensors is not what was written" in said(checkpoint)
    (checkpoint / "manifest.json").unlink()
    assert "has no manifest.json" in said(checkpoint)
    assert not out.exists() and not list(tmp_path.glob(".*"))


def configuration(folder: Path, data: Path) -> Path:
    file = folder / "run.yaml"
    file.write_text(f"""
experiment: {{name: first, dir: {folder}/first}}
allocation: megatron:t2
model: {{path: {data}/model}}
algorithm: {{name: sft}}
data: {{train: {data}/sft.jsonl, template: text}}
trainer: {{total_steps: 2, prompts_per_step: 16, dtype: bf16, optimizer: {{lr: 5.0e-3}}}}
""")
    return file


@pytest.mark.long
def test_a_run_begins_with_the_checkpoint_of_another(
    quickstart: Path, pentad: Callable[..., Command], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first trains in bfloat16; the second generates, and its steps are too small to change float32 weights."""
    first = pentad("train", str(configuration(tmp_path, quickstart)))
    assert first.ends_within(200) == 0, first.stderr
    run = tmp_path / "first"
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert main(["checkpoint", "export", str(run), "--out", str(tmp_path / "exported")]) == 0, capsys.readouterr()
    for path in (run / "model").iterdir():
        assert (tmp_path / "exported" / path.name).read_bytes() == path.read_bytes(), path.name
    second = pentad(
        "train",
        str(REPOSITORY / "examples" / "quickstart.yaml"),
        f"experiment.dir={tmp_path / 'second'}",
        f"model.path={checkpoint}",
        f"data.train={quickstart / 'train.jsonl'}",
        f"data.eval={{sort: {quickstart / 'eval.jsonl'}}}",
        "allocation=hf:d1+megatron:p2",
        "trainer.total_steps=1",
        "trainer.prompts_per_step=4",
        "trainer.save_freq=0",
        "trainer.val_before_train=false",
        "trainer.optimizer.lr=1.0e-30",
        "trainer.schedule.warmup_steps=0",
    )
    assert second.ends_within(200) == 0, second.stderr
    masters = convert(checkpoint, tmp_path / "masters", dtype="fp32")
    weights = [folder / "model.safetensors" for folder in (tmp_path / "second" / "model", masters)]
    one, other = map(load_file, weights)
    assert one.keys() == other.keys()
    assert all(value.dtype == torch.float32 and torch.equal(value, other[key]) for key, value in one.items())
    # What training began with is not what it ended with, and a damaged checkpoint is not begun with.
    assert main(["plan", "--model", str(checkpoint), "--allocation", "megatron:t2"]) == 0
    file = checkpoint / "policy" / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    refused = main(["train", str(configuration(tmp_path, quickstart)), f"model.path={checkpoint}", "experiment.name=x"])
    assert refused == 2 and "is not what was written (SHA-256 differs)" in capsys.readouterr().err
