"""The user's own fields of Megatron's configurations (`megatron.transformer`, `ddp`, `optimizer`).

Invariant: each is a field that Megatron has and that nothing else settles, and Megatron holds it as it was given; or
it is refused.
"""

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from pentad.errors import UserError

# Fields that are shown to work, and the values that are; none means all that Megatron takes.
Supported = Mapping[str, tuple[Any, ...] | None]

# What Megatron without Transformer Engine accepts and then does not do, or only refuses in mid-run.
_NEEDS_TRANSFORMER_ENGINE = (
    "fp8",
    "fp4",
    "apply_rope_fusion",
    "moe_permute_fusion",
    "gradient_accumulation_fusion",
    "use_precision_aware_optimizer",
)


def make_config[T](
    dataclass: type[T],
    defaults: Mapping[str, Any],
    overrides: Mapping[str, Any],
    *,
    prefix: str,
    settled: Mapping[str, str],
    supported: Supported,
) -> T:
    """One of Megatron's configurations, of Pentad's settings and the user's.

    Args:
        dataclass: Megatron's configuration class.
        defaults: what Pentad sets.
        overrides: what the user sets.
        prefix: where that stands in the configuration, as `megatron.transformer`.
        settled: fields that the user may not set, and which setting decides them.
        supported: fields that the user may set. Of all others Megatron has many that would do nothing here, fail in
            the ranks, or train another model than the one that is read, generated with and exported.

    Raises:
        UserError: a field does not exist, is settled elsewhere or not supported, or is refused by Megatron.
    """
    _check(dataclass, overrides, prefix, settled, supported)
    _check_supported(dataclass(**defaults), overrides, prefix, supported)
    try:
        config = dataclass(**{**defaults, **overrides})
    except (ValueError, AssertionError, TypeError, RuntimeError) as error:
        raise UserError(f"Megatron refuses this configuration: {error}", f"change {prefix}") from error
    check_kept(config, overrides, prefix)
    return config


def check_kept(config: object, overrides: Mapping[str, Any], prefix: str) -> None:
    """Refuse fields that Megatron took and then replaced, because others make them mean nothing.

    Raises:
        UserError: a field has not the value that the user gave.
    """
    for key, value in overrides.items():
        if (held := getattr(config, key)) != value:
            raise UserError(
                f"{prefix}.{key}={value!r} has no effect beside the other settings: Megatron makes it {held!r}",
                f"remove {prefix}.{key}, or set what it depends on in {prefix}",
            )


def _check(
    dataclass: type, overrides: Mapping[str, Any], prefix: str, settled: Mapping[str, str], supported: Supported
) -> None:
    known = {field.name for field in fields(dataclass)}
    for key, value in overrides.items():
        if key not in known:
            near = get_close_matches(key, supported, 1)
            raise UserError(
                f"{prefix}.{key} is not a field of Megatron's {dataclass.__name__}",
                f"did you mean {prefix}.{near[0]}?" if near else f"remove {prefix}.{key}",
            )
        if key in settled:
            raise UserError(f"{prefix}.{key} is settled by {settled[key]}", f"remove {prefix}.{key}")
        if key in _NEEDS_TRANSFORMER_ENGINE and value:
            raise UserError(
                f"{prefix}.{key} needs Transformer Engine or Apex, which Pentad does without", f"remove {prefix}.{key}"
            )


def _check_supported(plain: object, overrides: Mapping[str, Any], prefix: str, supported: Supported) -> None:
    """What changes nothing may be said of any field."""
    for key, value in overrides.items():
        if value == getattr(plain, key):
            continue
        if key not in supported:
            raise UserError(
                f"{prefix}.{key} is not supported: nothing shows that training with it is right",
                f"remove {prefix}.{key}; what may be set here is {', '.join(sorted(supported))}",
            )
        known = supported[key]
        wrong = [item for item in (value if isinstance(value, list) else [value]) if known and item not in known]
        if wrong:
            raise UserError(
                f"{prefix}.{key}={wrong[0]!r} is not supported",
                f"use {' or '.join(map(str, known or ()))}",
            )
