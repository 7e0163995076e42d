"""Reading datasets of the Hugging Face hub, or of a local directory laid out like one, and of ModelScope.

Invariant: configuration and split are the ones named in the source; where a source names none, there is only one
candidate or it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pentad.errors import UserError
from pentad.extras import require

HUB = "hf:"
MODELSCOPE = "ms:"
SPLITS = {"train": ("train",), "eval": ("test", "validation")}


def read_hub(source: str, role: Literal["train", "eval"], setting: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (place, row) of `hf:NAME[:CONFIG][:SPLIT]`; the configuration may also stand as `NAME[CONFIG]`.

    Without CONFIG the dataset must have one only; without SPLIT it is `train`, or for eval `test`, then
    `validation`.

    Raises:
        UserError: the dataset, its configuration or its split is not there, or it cannot be fetched.
    """
    import datasets  # takes a second; only hub sources need it

    name, parts = _parse(source, HUB, setting)
    try:
        configs = datasets.get_dataset_config_names(name)
        config, split = _choose_config(parts, configs, source, setting)
        split = _choose_split(split, datasets.get_dataset_split_names(name, config), role, source, setting)
        dataset = datasets.load_dataset(name, config, split=split)
    except UserError:
        raise
    except Exception as error:  # network, permissions, format: the library raises many kinds
        raise UserError(
            f"{setting}={source} cannot be loaded: {type(error).__name__}: {error}",
            "check the name and the network, or download it and name a .parquet or .jsonl file",
        ) from error
    for index, row in enumerate(dataset):
        yield f"{name}:{split}[{index}]", row


def read_modelscope(
    source: str, role: Literal["train", "eval"], setting: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (place, row) of `ms:NAME[:CONFIG][:SPLIT]`, a dataset of ModelScope.

    One part is a split if it has the name of one (train, test, validation), else a configuration. Splits are chosen as
    `read_hub` does.

    Raises:
        UserError: the package modelscope is not there, the dataset or its split is not, or it cannot be fetched.
    """
    require("modelscope", "modelscope", f"{setting}={source}", "download the dataset and name its files")
    from modelscope.msdatasets import MsDataset  # ty: ignore[import-not-found]

    name, parts = _parse(source, MODELSCOPE, setting)
    if len(parts) == 1 and parts[0] in {"train", *SPLITS["eval"]}:
        parts = ["", *parts]
    config, split = (*parts, "", "")[:2]
    try:
        found = MsDataset.load(name, **({"subset_name": config} if config else {}))
        split = _choose_split(split or None, list(found), role, source, setting)
        dataset = found[split]
    except UserError:
        raise
    except Exception as error:  # network, permissions, format: the library raises many kinds
        raise UserError(
            f"{setting}={source} cannot be loaded: {type(error).__name__}: {error}",
            "check the name and the network, or download it and name a .parquet or .jsonl file",
        ) from error
    for index, row in enumerate(dataset):
        yield f"{name}:{split}[{index}]", row


def _parse(source: str, prefix: str, setting: str) -> tuple[str, list[str]]:
    """Name, and configuration and split as far as they are given."""
    text = re.sub(r"^([^:\[\]]+)\[([^:\[\]]+)\](?=:|$)", r"\1:\2", source.removeprefix(prefix))
    name, *parts = text.split(":")
    if not name or len(parts) > 2 or not all(parts):
        raise UserError(
            f"{setting}={source} is not {prefix}NAME[:CONFIG][:SPLIT]", f"write {setting}={prefix}openai/gsm8k:main"
        )
    return name, parts


def _choose_config(parts: list[str], configs: list[str], source: str, setting: str) -> tuple[str, str | None]:
    if len(parts) == 2 or (parts and parts[0] in configs):
        config, split = parts[0], parts[1] if len(parts) == 2 else None
        if config not in configs:
            raise UserError(f"{setting}={source}: no configuration {config!r}", f"use one of {', '.join(configs)}")
        return config, split
    if len(configs) != 1:
        split = f":{parts[0]}" if parts else ""
        raise UserError(
            f"{setting}={source}: the dataset has {len(configs)} configurations: {', '.join(configs)}",
            f"name one, e.g. {source.removesuffix(split)}:{configs[0]}{split}",
        )
    return configs[0], parts[0] if parts else None


def _choose_split(wanted: str | None, splits: list[str], role: str, source: str, setting: str) -> str:
    candidates = (wanted,) if wanted else SPLITS[role]
    for candidate in candidates:
        if candidate in splits:
            return candidate
    raise UserError(
        f"{setting}={source}: the dataset has no split {' or '.join(candidates)}",
        f"add a split that it has: {', '.join(f':{name}' for name in splits)}",
    )
