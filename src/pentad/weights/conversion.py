"""Weights from one form to another, without processes: a Hugging Face directory, and blocks as ranks of a layout hold.

Invariant: a tensor that is not cast is equal bit for bit. At no time are more than three slabs of 64 MiB in memory: the
one that is written, the next as it is stored, and its pages of the mapped file.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from pentad.families.facts import ModelFacts
from pentad.families.rules import Experts, Replicated, Row, Rule, Vocab
from pentad.layout import Layout
from pentad.layout.pipeline import pipeline_chunks
from pentad.weights.block_files import WEIGHT, BlockReader, rank_file, stream_blocks
from pentad.weights.blocks import Block, Shape, slabs, whole_block
from pentad.weights.hf_files import SHARD_BYTES, TensorReader, new_model, shard_name
from pentad.weights.mapping import WeightMapping, expected_shapes
from pentad.weights.placement import Place, places
from pentad.weights.safetensors_writer import Entry, FileRecord, write_safetensors
from pentad.weights.source import companion_files, load_config

_SLAB_BYTES = 64 << 20
_CONFIG_NAMES = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


def blocks_of_rank(config: PreTrainedConfig, layout: Layout, place: Place, shapes: Mapping[str, Shape]) -> list[Block]:
    """The blocks that a rank writes: of ranks that hold the same, the first writes it.

    Args:
        shapes: of the whole Hugging Face tensors.
    """
    mapping = WeightMapping(config, place)
    found = []
    for chunk in pipeline_chunks(mapping.facts, layout)[place.stage]:
        for name in mapping.names_of(chunk.layers, embedding=chunk.embedding, head=chunk.head):
            rule, names = mapping.rule_of(name)
            is_first = place.first_expert if isinstance(rule, Experts) else place.first_dense
            if is_first and mapping.is_first_copy(name):
                found += mapping.blocks(name, _local_shape(rule, names, shapes, mapping.facts, place))
    return found


def _local_shape(
    rule: Rule, names: Iterable[str], shapes: Mapping[str, Shape], facts: ModelFacts, place: Place
) -> Shape:
    """Of a rank's parameter, by the rule that shares its tensors out."""
    if isinstance(rule, Experts):
        one = _split([shapes[name.replace("{expert}", "0")] for name in names], rule.each, facts, place.expt_tp.size())
        return ((facts.num_experts or 0) // place.ep.size(), *one)
    return _split([shapes[name] for name in names], rule, facts, place.tp.size())


def _split(whole: list[Shape], rule: Rule, facts: ModelFacts, ranks: int) -> Shape:
    rows, *rest = whole[0]
    if isinstance(rule, Replicated):
        return whole[0]
    if isinstance(rule, Row):
        return (rows, whole[0][1] // ranks)
    if isinstance(rule, Vocab):
        return (facts.padded_vocab(ranks) // ranks, *rest)
    # Column, Gated and QKV split rows.
    return (sum(shape[0] for shape in whole) // ranks, *rest)


def write_layout(
    reader: TensorReader, config: PreTrainedConfig, layout: Layout, target: Path, dtype: torch.dtype | None = None
) -> list[FileRecord]:
    """Write the files that the ranks of a layout would write, weights only.

    Args:
        target: directory for the files.
        dtype: as which all tensors are stored; None: each as in the source.

    Returns:
        the files. A rank that holds nothing that an earlier one does not hold too has none.

    Raises:
        OSError: as it comes.
        UserError: a tensor is stored in a format that is no weight's.
    """
    records = []
    for place in places(layout):
        blocks = blocks_of_rank(config, layout, place, reader.shapes)
        if blocks:
            pairs = [(block, dtype or reader.dtype_of(block.name)) for block in blocks]
            entries = [(WEIGHT, *pair) for pair in pairs]
            records.append(stream_blocks(target / rank_file(place.number), entries, _pieces(reader, pairs)))
    return records


def export_checkpoint(
    directory: Path, source: Path, out: Path, dtype: torch.dtype | None = None, config_json: str | None = None
) -> None:
    """Write a model of a checkpoint as a Hugging Face directory.

    Args:
        directory: of its blocks, of any layout, as `policy` of a checkpoint.
        source: a model directory, for everything beside the weights.
        out: must not exist yet.
        dtype: as which all tensors are stored; None: each as in the checkpoint.
        config_json: text of config.json; that of the source if None.

    Raises:
        UserError: the checkpoint is not of this model or lacks parts of it; `out` exists, or cannot be written.
    """
    config = load_config(source)
    reader = BlockReader(directory)
    expected = expected_shapes(config)
    reader.check(expected, tied=bool(config.tie_word_embeddings))
    text = (source / "config.json").read_text(encoding="utf-8") if config_json is None else config_json
    entries = [Entry(name, dtype or reader.dtype_of(name), tuple(shape)) for name, shape in expected.items()]
    with new_model(out, companion_files(source), text) as model:
        model.weight_map = _write_model(reader, entries, model.directory)


def with_dtype(config_json: str, dtype: torch.dtype) -> str:
    """The text of a config.json that says as which dtype the weights are stored."""
    config = json.loads(config_json)
    name = "torch_dtype" if "torch_dtype" in config else "dtype"
    return json.dumps({**config, name: _CONFIG_NAMES[dtype]}, indent=2) + "\n"


def _write_model(reader: TensorReader, entries: list[Entry], directory: Path) -> dict[str, str]:
    """Write files of weights, as `write_checkpoint` would; returns the file of each tensor."""
    shards: list[list[Entry]] = [[]]
    for entry in entries:
        if shards[-1] and sum(held.bytes for held in shards[-1]) + entry.bytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append(entry)
    weight_map = {}
    for number, shard in enumerate(shards):
        name = shard_name(number, len(shards))
        # In the order of safetensors' own writer: large elements first, then by name.
        shard.sort(key=lambda entry: (-entry.dtype.itemsize, entry.dtype != torch.bfloat16, entry.key))
        pairs = [(whole_block(entry.key, entry.shape), entry.dtype) for entry in shard]
        write_safetensors(directory / name, {"format": "pt"}, shard, _pieces(reader, pairs))
        weight_map.update({entry.key: name for entry in shard})
    return weight_map


def _pieces(reader: TensorReader, blocks: Iterable[tuple[Block, torch.dtype]]) -> Iterator[Tensor]:
    """The elements of blocks, slab by slab."""
    for block, dtype in blocks:
        stored = max(dtype.itemsize, reader.dtype_of(block.name).itemsize)
        for slab in slabs(block, _SLAB_BYTES // stored):
            yield reader.part(slab).to(dtype)
