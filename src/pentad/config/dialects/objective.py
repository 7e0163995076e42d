"""From estimators, losses, clipping and KL penalties of other systems to `algorithm.*`.

Invariant: an algorithm or a mean that does not exist in this version is refused by its name; no other stands in for it.
"""

from pentad.config.dialects import areal_norm
from pentad.config.dialects.facts import Sheet
from pentad.config.schema.algorithms import ALGORITHMS

_MEANS = {
    "token-mean": "token",
    "token_mean": "token",
    "token": "token",
    "seq-mean-token-mean": "sequence",
    "sequence_mean": "sequence",
    "sequence": "sequence",
}
_RATIOS = {"sequence": "gspo", "cispo": "cispo"}
_TO_CONSTANT = ("seq-mean-token-sum-norm", "seq_mean_token_sum_norm", "dr_grpo")
# TRL's loss types -> (algorithm, mean).
_LOSS_TYPES = {
    "grpo": (None, "sequence"),
    "bnpo": (None, "token"),
    "dapo": (None, "token"),
    "dr_grpo": (None, "constant"),
    "cispo": ("cispo", "token"),
}


def assemble(sheet: Sheet) -> None:
    """Set the algorithm, its clipping, its mean and its KL penalty."""
    if areal_norm.decides(sheet):
        areal_norm.assemble(sheet)
    else:
        _algorithm(sheet)
        areal_norm.take_what_is_there(sheet)
    _clipping(sheet)
    _mean(sheet)
    _kl(sheet)
    sheet.nothing("only a constant mean reads it", "constant_length")
    if sheet.has("std"):
        sheet.take("algorithm.advantage_std", sheet.get("std"), "std")


def _algorithm(sheet: Sheet) -> None:
    asked = sheet.get("estimator", "grpo")
    loss, mean = _LOSS_TYPES.get(str(sheet.get("loss_type")), (None, None))
    if loss is not None:
        asked = loss
    if asked == "grpo" and sheet.get("advantage_fn", "grpo") != "grpo":
        asked = sheet.get("advantage_fn")
    ratio = sheet.get("ratio_level", "token")
    if ratio != "token" and asked not in ("grpo", _RATIOS[ratio]):
        sheet.refuse(f"the policy loss of {_RATIOS[ratio]} with advantages of {asked}", "ratio_level")
    elif ratio != "token":
        asked = _RATIOS[ratio]
    if asked == "grpo" and (sheet.get("mean") in _TO_CONSTANT or mean == "constant") and sheet.get("std") is False:
        asked = "dr_grpo"
    facts = ["estimator", "ratio_level"]
    if asked == "dr_grpo" and sheet.get("std") is False:
        facts += ["std"]
    if sheet.get("advantage_fn", asked) not in (asked, "grpo"):
        sheet.refuse(f"advantages of {sheet.get('advantage_fn')} with {asked}", "advantage_fn")
    sheet.nothing("the algorithm's own", "advantage_fn")
    if sheet.has("loss_type"):
        if mean is not None:
            sheet.take("algorithm.loss_mean", mean, "loss_type", why=f"the algorithm {asked}" if loss else "")
        else:
            sheet.refuse(f"the loss {sheet.get('loss_type')}", "loss_type")
    if asked not in ALGORITHMS:
        sheet.refuse(f"the algorithm {asked}; this version has {', '.join(ALGORITHMS)}", *facts)
        return
    sheet.take("algorithm.name", asked, *facts)


def _clipping(sheet: Sheet) -> None:
    both = sheet.get("clip")
    low, high = sheet.get("clip_low", both), sheet.get("clip_high", both)
    if sheet.values.get("algorithm.name") == "cispo" and sheet.has("cispo_high"):
        sheet.take("algorithm.clip_low", sheet.get("cispo_low"), "cispo_low")
        sheet.take("algorithm.clip_high", sheet.get("cispo_high"), "cispo_high")
        sheet.nothing("cispo has bounds of its own", "clip", "clip_low", "clip_high")
        return
    sheet.nothing("a value of another loss", "cispo_low", "cispo_high")
    if sheet.has("clip"):
        why = "" if low == high else f"below {low:g}, above {high:g}"
        sheet.take("algorithm.clip_low", low, "clip", why=why)
    if low is not None:
        sheet.take("algorithm.clip_low", low, "clip_low")
    if _is_trl_cispo(sheet):
        low, high = 1.0, (high or 0.0) - 1
        sheet.values["algorithm.clip_low"] = low
        sheet.take("algorithm.clip_low", low, "clip", why="there is no bound from below")
        if high < 0:
            sheet.refuse("a bound of the ratio below 1: give epsilon_high", "clip_high", "clip")
            return
    if high is not None:
        sheet.take("algorithm.clip_high", high, "clip_high")


def _mean(sheet: Sheet) -> None:
    if not sheet.has("mean"):
        return
    asked = str(sheet.get("mean"))
    if _forced(sheet):
        sheet.take("algorithm.loss_mean", "sequence", "mean", why="gspo takes it there in any case")
    elif asked in _TO_CONSTANT:
        _to_constant(sheet)
    elif asked in _MEANS:
        sheet.take("algorithm.loss_mean", _MEANS[asked], "mean")
    else:
        sheet.refuse(f"the mean {asked} of a loss", "mean")


def _is_trl_cispo(sheet: Sheet) -> bool:
    """TRL's bound of CISPO is that of the ratio itself, not of its distance to 1."""
    return any(row.fact == "loss_type" and row.entry.value == "cispo" for row in sheet.rows)


def _forced(sheet: Sheet) -> bool:
    """verl's GSPO does not read the mean."""
    by_verl = any(row.entry.key.startswith("actor_rollout_ref.") for row in sheet.of("mean"))
    return by_verl and sheet.values.get("algorithm.name") == "gspo"


def _to_constant(sheet: Sheet) -> None:
    """A sum of tokens over a constant, which is the longest response here."""
    longest = sheet.values.get("rollout.max_response_tokens")
    by_skyrl = sheet.get("mean") == "seq_mean_token_sum_norm"
    divisor = sheet.get("constant_length")
    if by_skyrl and divisor != longest:
        does = f"a sum of tokens over max_seq_len = {divisor}; here over rollout.max_response_tokens = {longest}"
        sheet.refuse(does, "mean", "constant_length")
        return
    sheet.take("algorithm.loss_mean", "constant", "mean", "constant_length")


def _kl(sheet: Sheet) -> None:
    in_loss = sheet.get("kl_loss", sheet.has("kl_loss_type") if not sheet.has("kl_loss") else False)
    in_reward = sheet.get("kl_reward", sheet.has("kl_reward_type") and not _has_flags(sheet))
    if not sheet.has("kl_loss") and _has_flags(sheet):
        in_loss = False
    loss, reward = ("kl_loss", "kl_loss_coef", "kl_loss_type"), ("kl_reward", "kl_reward_coef", "kl_reward_type")
    if sheet.has("kl"):
        _penalty(sheet, "loss", sheet.get("kl"), "k3", ("kl",), "kl")
    elif in_loss and in_reward:
        sheet.refuse("a KL penalty in loss and reward at once", *loss, *reward)
    elif in_loss:
        _penalty(sheet, "loss", sheet.get("kl_loss_coef", 0.0), sheet.get("kl_loss_type", "k3"), loss, "kl_loss_type")
    elif in_reward:
        kind, weight, facts = sheet.get("kl_reward_type", "k1"), sheet.get("kl_reward_coef", 0.0), reward
        if any(row.entry.key.startswith("trainer.algorithm.") for row in sheet.of("kl_reward")):
            # SkyRL has one weight and one estimator for both places.
            kind, weight, facts = sheet.get("kl_loss_type", "k3"), sheet.get("kl_loss_coef", 0.0), (*reward, *loss)
        _penalty(sheet, "reward", weight, kind, facts, "kl_reward_type" if facts is reward else "kl_loss_type")
    sheet.nothing("there is no KL penalty in the loss", *loss)
    sheet.nothing("there is no KL penalty in the reward", *reward)


def _has_flags(sheet: Sheet) -> bool:
    """Whether the other system switches penalties by flags; otherwise it does by the name of the estimator."""
    return any(
        row.entry.key.startswith(("actor_rollout_ref.", "trainer.algorithm."))
        or row.entry.key in ("algorithm.kl_penalty", "algorithm.kl_ctrl.kl_coef", "algorithm.use_kl_in_reward")
        for row in sheet.rows
    )


def _penalty(sheet: Sheet, where: str, weight: float, kind: str, facts: tuple[str, ...], kind_fact: str) -> None:
    if weight == 0:
        sheet.take("algorithm.kl_coef", 0.0, *facts)
        return
    if where == "loss" and kind == "k1":
        sheet.refuse("a KL penalty by k1 in the loss, whose gradient is zero on average", *facts)
        return
    values = sheet.values
    values["algorithm.kl_in"], values["algorithm.kl_estimator"] = where, kind
    if kind_fact != "kl":
        sheet.take("algorithm.kl_estimator", kind, kind_fact)
    sheet.take("algorithm.kl_coef", weight, *facts, why=f"in the {where}, by {kind}")
