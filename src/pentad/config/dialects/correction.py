"""From importance weights and log-probs of other systems to `algorithm.old_logprobs` and `algorithm.correction`.

Invariant: where the other system weighs no samples, none are weighed here, also where `auto` would.
"""

from pentad.config.dialects.facts import Sheet

_WEIGHTS = ("weights_level", "weights_mode", "weights_rule", "weights_high", "weights_high_sequence", "weights_low")
_LEVEL, _RULE = "algorithm.correction.level", "algorithm.correction.rule"
_HIGH, _LOW = "algorithm.correction.high", "algorithm.correction.low"
# Keys that say whether log-probs of the engine are compared with the trainer's only where vLLM generates.
_OF_VLLM = "vllm_importance_sampling"


def assemble(sheet: Sheet) -> None:
    """Set what ratios are taken to, and how samples of other weights count."""
    _ratio(sheet)
    by_cap = any(row.entry.key.endswith("actor.tis_imp_ratio_cap") for row in sheet.of("weights_high"))
    on = sheet.get("weights_on", sheet.has("weights_level") or by_cap) and sheet.get("weights_mode") != "disabled"
    unbounded = any("imp_weight_cap" in row.entry.key and row.entry.value is None for row in sheet.rows)
    switches = sheet.of("weights_on")
    if switches and _OF_VLLM in switches[0].entry.key and not _by_vllm(sheet):
        sheet.nothing("it is read where vLLM generates", "weights_on", *_WEIGHTS)
        return
    if sheet.values.get("algorithm.old_logprobs") == "rollout":
        sheet.nothing("ratios are to what was sampled, so all weights would be 1", "weights_on", *_WEIGHTS)
    elif on and unbounded:
        sheet.refuse("weigh samples without a bound", "weights_on", *_WEIGHTS)
    elif on and not sheet.is_whole and not (sheet.has("weights_high") and sheet.of("weights_mode", "weights_level")):
        sheet.refuse("weights whose kind and bound are settings that are not here", "weights_on", *_WEIGHTS)
    elif on:
        _weights(sheet)
    else:
        if sheet.values.get("trainer.max_staleness") and sheet.is_whole:
            sheet.take(_LEVEL, "none", "weights_on")
        sheet.nothing("samples are not weighed", "weights_on", *_WEIGHTS)


def _by_vllm(sheet: Sheet) -> bool:
    return any(row.entry.key.endswith("use_vllm") and row.entry.value in (True, "true", "True") for row in sheet.rows)


def _ratio(sheet: Sheet) -> None:
    key = "algorithm.old_logprobs"
    if sheet.get("bypass"):
        sheet.take(key, "rollout", "bypass")
    sheet.nothing("log-probs are the trainer's", "bypass")
    if sheet.get("weights_on") and sheet.has("recompute"):
        sheet.nothing("weights need the trainer's log-probs in any case", "recompute")
    elif sheet.has("recompute"):
        sheet.take(key, "trainer" if sheet.get("recompute") else "rollout", "recompute")


def _weights(sheet: Sheet) -> None:
    level, rule = sheet.get("weights_level", "token"), sheet.get("weights_rule", "truncate")
    facts = ["weights_on", "weights_level"]
    if sheet.has("weights_mode") and not sheet.has("weights_level"):
        level, rule = sheet.get("weights_mode").split("_")
        facts.append("weights_mode")
    sheet.take(_RULE, rule, "weights_rule")
    sheet.take(_LEVEL, level, *facts, why=f"{level}, {rule}" if "weights_mode" in facts else "")
    high, other = ("weights_high", "weights_high_sequence")
    if level == "sequence" and sheet.has(other):
        high, other = other, high
    largest = sheet.get(high, 2.0)
    sheet.take(_HIGH, largest, high)
    sheet.nothing(f"weights are of a {level}", other)
    if rule == "mask":
        # The older verl's lower bound, where it gives none, is the inverse of the upper one.
        if sheet.has("weights_low"):
            sheet.take(_LOW, sheet.get("weights_low"), "weights_low")
        elif any(row.entry.key == "algorithm.rollout_is_mode" for row in sheet.rows):
            sheet.values[_LOW] = 1 / largest
    elif sheet.get("weights_low"):
        sheet.refuse("raise small weights to a lower bound", "weights_low")
    sheet.nothing("nothing is left out for a small weight", "weights_low", "weights_mode")
