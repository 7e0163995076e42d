"""The user's own fields of Megatron's configurations (`megatron.transformer`, `ddp`, `optimizer`).

Invariant: each is a field that Megatron has and that nothing else settles, and Megatron holds it as it was given; or
it is refused.
"""

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from pentad.config.schema.megatron_fields import NEEDS_TRANSFORMER_ENGINE, SETTLED, SUPPORTED, Field
from pentad.errors import UserError


def make_config[T](
    dataclass: type[T],
    defaults: Mapping[str, Any],
    overrides: Mapping[str, Any],
    part: str,
) -> T:
    """One of Megatron's configurations, made of Pentad's settings and the user's.

    Args:
        dataclass: Megatron's configuration class.
        defaults: what Pentad sets.
        overrides: what the user sets.
        part: where that stands below `megatron`: transformer, ddp or optimizer. Only fields in `SUPPORTED[part]` may
            be changed: many others would do nothing here, fail in the ranks, or train another model than the one that
            is read, generated with and exported.

    Raises:
        UserError: a field does not exist, is settled elsewhere or not supported, or is refused by Megatron.
    """
    prefix, supported = f"megatron.{part}", SUPPORTED[part]
    _check(dataclass, overrides, prefix, SETTLED[part], supported)
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
    dataclass: type,
    overrides: Mapping[str, Any],
    prefix: str,
    settled: Mapping[str, str],
    supported: Mapping[str, Field],
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
        if key in NEEDS_TRANSFORMER_ENGINE and value:
            raise UserError(
                f"{prefix}.{key} needs Transformer Engine or Apex, which Pentad does without", f"remove {prefix}.{key}"
            )


def _check_supported(plain: object, overrides: Mapping[str, Any], prefix: str, supported: Mapping[str, Field]) -> None:
    """Refuse fields and values that are not supported; a value that changes nothing is accepted for any field."""
    for key, value in overrides.items():
        if value == getattr(plain, key):
            continue
        if key not in supported:
            raise UserError(
                f"{prefix}.{key} is not supported: nothing shows that training with it is right",
                f"remove {prefix}.{key}; what may be set here is {', '.join(sorted(supported))}",
            )
        if not supported[key].accepts(value):
            raise UserError(f"{prefix}.{key}={value!r} is not supported", f"give {supported[key].expected}")
