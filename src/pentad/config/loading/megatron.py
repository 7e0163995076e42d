"""Rules of `megatron.*` that can be checked without Megatron.

Invariant: what is accepted here is a field that Pentad supports with a value that it supports. Megatron's own checks
follow in `pentad.trainers.megatron.passthrough`; what depends on the model is in `pentad.layout.megatron_checks`.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pentad.config.loading.yaml_io import KeyPath, write_value
from pentad.config.schema.megatron import MegatronSettings
from pentad.config.schema.megatron_fields import NEEDS_TRANSFORMER_ENGINE, SETTLED, SUPPORTED
from pentad.errors import UserError

# What `recompute_granularity: full` needs beside it: each layer is recomputed by itself, which keeps least.
_FULL_RECOMPUTE = {"recompute_method": "uniform", "recompute_num_layers": 1}


def complete(values: dict[str, Any]) -> dict[KeyPath, Any]:
    """Add the usual companions of `recompute_granularity: full` that were not given.

    Args:
        values: nested dictionaries, as of a configuration; changed in place.

    Returns:
        what was added: key path -> value.
    """
    part: Any = values
    for name in ("megatron", "transformer"):
        part = part.get(name)
        if not isinstance(part, dict):
            return {}
    if part.get("recompute_granularity") != "full" or part.get("recompute_method", "uniform") != "uniform":
        return {}
    added = {name: value for name, value in _FULL_RECOMPUTE.items() if name not in part}
    part |= added
    return {("megatron", "transformer", name): value for name, value in added.items()}


def describe_added(added: Mapping[KeyPath, Any]) -> str:
    """What `complete` added, in one sentence; empty if that is nothing."""
    if not added:
        return ""
    names = " and ".join(f"{'.'.join(path)}={value}" for path, value in added.items())
    verb = "is" if len(added) == 1 else "are"
    return f"megatron.transformer.recompute_granularity=full: {names} {verb} assumed"


def check_megatron(settings: MegatronSettings, named: Callable[[str], str]) -> Iterator[UserError]:
    """Every broken rule.

    Args:
        named: a dotted key with the place where it was set.
    """
    for part, fields in SUPPORTED.items():
        for key, value in getattr(settings, part).items():
            yield from _check_field(part, key, value, fields, named)
    yield from _check_together(settings, named)


def _check_field(
    part: str, key: str, value: Any, fields: Mapping[str, Any], named: Callable[[str], str]
) -> Iterator[UserError]:
    name = f"megatron.{part}.{key}"
    if (field := fields.get(key)) is not None:
        if not field.accepts(value):
            yield UserError(
                f"{named(name)}: expected {field.expected}, got {write_value(value)}",
                f"give {field.expected}, or remove {name}",
            )
    elif key in SETTLED[part]:
        yield UserError(f"{named(name)} is settled by {SETTLED[part][key]}", f"remove {name}")
    elif key in NEEDS_TRANSFORMER_ENGINE:
        if value:  # to switch it off is to leave it as it is
            cause = f"{named(name)} needs Transformer Engine or Apex, which Pentad does without"
            yield UserError(cause, f"remove {name}")
    else:
        near = difflib.get_close_matches(key, fields, 1, cutoff=0.75)
        hint = f"did you mean megatron.{part}.{near[0]}?" if near else f"remove {name}"
        yield UserError(
            f"{named(name)} is not among the fields that may be set here: {', '.join(sorted(fields))}", hint
        )


def _check_together(settings: MegatronSettings, named: Callable[[str], str]) -> Iterator[UserError]:
    transformer, ddp = settings.transformer, settings.ddp
    granularity = transformer.get("recompute_granularity")

    def without_effect(part: str, key: str, needed: str) -> UserError:
        name = f"megatron.{part}.{key}"
        return UserError(
            f"{named(name)} has no effect without megatron.{part}.{needed}",
            f"remove {name}, or set megatron.{part}.{needed}",
        )

    for key in ("recompute_method", "recompute_num_layers"):
        if transformer.get(key) is not None and granularity != "full":
            yield without_effect("transformer", key, "recompute_granularity=full")
    if transformer.get("recompute_modules") is not None and granularity != "selective":
        yield without_effect("transformer", "recompute_modules", "recompute_granularity=selective")
    if transformer.get("recompute_method") == "block" and transformer.get("recompute_num_layers") is None:
        yield UserError(
            f"{named('megatron.transformer.recompute_method')} is block, which recomputes the first layers of each "
            "stage, and their number is not given",
            "set megatron.transformer.recompute_num_layers",
        )
    if transformer.get("moe_aux_loss_coeff") and transformer.get("moe_router_load_balancing_type") != "aux_loss":
        yield without_effect("transformer", "moe_aux_loss_coeff", "moe_router_load_balancing_type=aux_loss")
    if transformer.get("moe_router_load_balancing_type") == "aux_loss" and not transformer.get("moe_aux_loss_coeff"):
        yield without_effect("transformer", "moe_router_load_balancing_type", "moe_aux_loss_coeff above 0")
    if ddp.get("bucket_size") and not ddp.get("overlap_grad_reduce"):
        yield without_effect("ddp", "bucket_size", "overlap_grad_reduce=true")
