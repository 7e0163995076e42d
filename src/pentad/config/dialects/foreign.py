"""What the settings of other systems are called here, for the messages about unknown keys.

Invariant: hints and `pentad import` read the same tables.
"""

import re
from dataclasses import dataclass

from pentad.config.dialects.catalog import DIALECTS
from pentad.config.dialects.facts import exists
from pentad.config.dialects.rules import Rule

# Keys as people write them, without the section that they have there.
_LOOSE: tuple[tuple[str, str, str], ...] = (
    (r"(.*\.)?(max_\w*ckpt_to_keep|save_total_limit)", "trainer.max_ckpt_to_keep", ""),
    (r"(.*\.)?(save_steps|save_strategy|ckpt_interval)", "trainer.save_freq", "in steps"),
    (r"(.*\.)?(resume_from_checkpoint|resume_from_path)", "trainer.resume_mode", "auto, or a path"),
    (r".*\b(override_transformer_config|transformer_config_kwargs)\.(\w+)", r"megatron.transformer.\2", ""),
    (r".*\b(use_deterministic_algorithms|deterministic_mode)", "megatron.use_deterministic_algorithms", ""),
    (r".*\bddp_config\.(\w+)", r"megatron.ddp.\1", ""),
    (r".*\boptimizer_config_kwargs\.(\w+)", r"megatron.optimizer.\1", ""),
    *(
        (rf".*\b{word}_parallel_size", "allocation", f"in the trainer's layout, such as megatron:d1{letter}2")
        for word, letter in (
            ("virtual_pipeline_model", "p2v"),
            ("tensor_model", "t"),
            ("pipeline_model", "p"),
            ("context", "c"),
            ("expert_model", "e"),
            ("expert_tensor", "x"),
        )
    ),
    (r".*\bsequence_parallel", "", "sequence parallelism is on whenever t is above 1; remove it"),
    (
        r".*\b(param_offload|grad_offload|optimizer_offload|use_mbridge|use_remove_padding)",
        "",
        "there is no such setting; remove it",
    ),
)


@dataclass(frozen=True)
class Translation:
    """Our name for a setting of another system: `key` may be empty, `note` may add what to write."""

    key: str
    note: str = ""


def translate(name: str) -> Translation | None:
    """Our counterpart of a key of verl, siiRL, AReaL, SkyRL, Trinity-RFT or TRL; None if the key is none of theirs."""
    found = [rule for dialect in DIALECTS.values() if (rule := dialect.rule(name)) is not None]
    # A key that one of them has a setting for is meant as that, whatever others make of a whole section.
    for rule in sorted(found, key=lambda rule: not rule.target):
        if rule.target == name:
            return None
        if rule.target and exists(rule.target):
            return Translation(rule.target, rule.note)
        break
    for pattern, key, note in _LOOSE:
        if match := re.fullmatch(pattern, name):
            return None if match.expand(key) == name else Translation(match.expand(key), note)
    return Translation("", _reason(found[0])) if found else None


def _reason(rule: Rule) -> str:
    if rule.why:
        return f"it has no meaning here ({rule.why}); remove it"
    return f"it is not supported here ({rule.does or rule.target}); remove it"


def targets() -> frozenset[str]:
    """The settings that the tables point at, with the choices of a pattern left out."""
    of_rules = {rule.target for dialect in DIALECTS.values() for rule in dialect.rules}
    return frozenset(key for key in (*of_rules, *(key for _, key, _ in _LOOSE)) if key and "\\" not in key)


def is_ours(name: str) -> bool:
    """Whether a translation's key is one of Pentad's settings, or lies in one of its free mappings."""
    return exists(name)
