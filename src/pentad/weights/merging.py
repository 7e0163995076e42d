"""A model with an adapter merged into it, as a Hugging Face directory.

Invariant: each weight is `W + s B A`, computed in float32 and rounded once; every matrix of the adapter is used, and
weights without one are copied bit for bit.
"""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from pentad.errors import UserError
from pentad.families.lora import A, B
from pentad.weights.adapters import AdapterReader, check_plain, merge, peft_scale
from pentad.weights.hf_files import CheckpointReader, write_checkpoint
from pentad.weights.source import companion_files


def merge_adapter(adapter: Path, base: Path, target: Path) -> int:
    """Write the merged model.

    Args:
        adapter: a directory in PEFT's format.
        base: the model that it belongs to, as a Hugging Face directory.
        target: must not exist yet.

    Returns:
        how many modules were merged.

    Raises:
        UserError: the adapter is not of that model, or is none that Pentad computes; the target cannot be written.
    """
    matrices, weights = AdapterReader(adapter), CheckpointReader(base)
    check_plain(matrices.config, str(adapter))
    scale = peft_scale(matrices.config)
    modules = {name.removesuffix(A) for name in matrices.shapes if name.endswith(A)}
    for module in sorted(modules):
        shape, a, b = (
            weights.shapes.get(f"{module}.weight"),
            matrices.shapes[module + A],
            matrices.shapes.get(module + B),
        )
        if shape is None or b is None or (b[0], a[1]) != tuple(shape) or b[1] != a[0]:
            has = "has no such module" if shape is None else f"has a weight {list(shape)} there"
            raise UserError(
                f"{adapter}: the adapter of {module} is {list(a)} and {list(b or ())}, and {base} {has}",
                "name the model that the adapter was trained on with --model",
            )

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name in weights.shapes:
            weight, module = weights.get(name), name.removesuffix(".weight")
            if module in modules:
                weight = merge(weight, matrices.get(module + A), matrices.get(module + B), scale)
            yield name, weight

    config = (base / "config.json").read_text()
    write_checkpoint(tensors(), target, companion_files(base), config)
    return len(modules)
