"""The configuration of a model in a GGUF file, from the file's header.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Invariant: only the header is read, whatever the file's size.
"""

import struct
from pathlib import Path
from typing import Any, BinaryIO

from pentad.errors import UserError

# Number of the value type -> struct format.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

# Name under the architecture's prefix -> name in config.json.
_NAMES = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
    "vocab_size": "vocab_size",
}


def read_gguf_config(path: Path) -> dict[str, Any]:
    """What `config.json` would say, as far as sizes go. For dense models.

    Raises:
        UserError: the file is not a GGUF file of version 2 or 3.
    """
    try:
        with path.open("rb") as file:
            return _config(file, path)
    except (struct.error, UnicodeDecodeError, KeyError) as error:
        raise UserError(f"model: {path} cannot be read as a GGUF file: {error}", "give another file") from None


def _config(file: BinaryIO, path: Path) -> dict[str, Any]:
    if file.read(4) != b"GGUF" or _unpack(file, "I") not in (2, 3):
        raise UserError(f"model: {path} is not a GGUF file of version 2 or 3", "give another file")
    tensors, entries = _unpack(file, "Q"), _unpack(file, "Q")
    values = {}
    for _ in range(entries):
        key = _string(file)
        values[key] = _value(file, _unpack(file, "I"))
    names = {_tensor_name(file) for _ in range(tensors)}

    architecture = values["general.architecture"]
    config = {
        name: values[f"{architecture}.{key}"] for key, name in _NAMES.items() if f"{architecture}.{key}" in values
    }
    config.setdefault("vocab_size", values.get("tokenizer.ggml.tokens"))
    config["model_type"] = architecture
    config["tie_word_embeddings"] = "output.weight" not in names
    return config


def _unpack(file: BinaryIO, kind: str) -> Any:
    return struct.unpack("<" + kind, file.read(struct.calcsize(kind)))[0]


def _string(file: BinaryIO) -> str:
    return file.read(_unpack(file, "Q")).decode()


def _value(file: BinaryIO, kind: int) -> Any:
    """A value; of an array only its length, as no size is given by an array."""
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _unpack(file, _SCALARS[kind])
    inner, length = _unpack(file, "I"), _unpack(file, "Q")
    if inner in _SCALARS:
        file.seek(struct.calcsize(_SCALARS[inner]) * length, 1)
    else:
        for _ in range(length):
            if inner == _STRING:
                file.seek(_unpack(file, "Q"), 1)
            else:
                _value(file, inner)
    return length


def _tensor_name(file: BinaryIO) -> str:
    name = _string(file)
    # Dimensions, type and offset.
    file.seek(8 * _unpack(file, "I") + 4 + 8, 1)
    return name
