"""AReaL has no name of an algorithm: its normalisations of rewards and advantages, penalty and critic decide.

Invariant: a combination that is none of the algorithms here is refused; scaling is left out only where it is undone.
"""

from pentad.config.dialects.facts import Sheet

_FACTS = ("norm_mean", "norm_std", "norm_leave_one_out", "adv_mean", "adv_std", "areal_kl")


def decides(sheet: Sheet) -> bool:
    """Whether the settings of AReaL's actor are there, all of them."""
    return sheet.is_whole and bool(sheet.of(*_FACTS, "reward_scaling", "reward_bias", "reward_clip"))


def assemble(sheet: Sheet) -> None:
    """Set the algorithm, its advantages, its penalty, and what is made of rewards."""
    name = _algorithm(sheet)
    if name is not None:
        sheet.values["algorithm.name"] = name
        if sheet.get("ratio_level") == "sequence" and name != "grpo":
            sheet.refuse(f"ratios of sequences with the advantages of {name}", "ratio_level")
        elif sheet.get("ratio_level") == "sequence":
            sheet.take("algorithm.name", "gspo", "ratio_level")
            sheet.values["algorithm.loss_mean"] = "token"
        sheet.nothing("ratios of tokens are the default", "ratio_level")
        if name == "rloo":
            sheet.values["algorithm.loss_mean"] = "token"
        _advantages(sheet, name)
        _penalty(sheet, name)
    _scale(sheet)


def take_what_is_there(sheet: Sheet) -> None:
    """Of a file whose other settings are not known, what can be taken by itself."""
    if sheet.get("norm_mean", "group") == "group" and sheet.get("norm_std") in ("group", "none"):
        sheet.take("algorithm.advantage_std", sheet.get("norm_std") == "group", "norm_std")
        sheet.nothing("advantages are of a group", "norm_mean")
    if sheet.get("areal_kl") == 0:
        sheet.take("algorithm.kl_coef", 0.0, "areal_kl")
    scale = ("reward_scaling", "reward_bias", "reward_clip")
    sheet.refuse("settings that depend on others, which are not in this file", *_FACTS, *scale, "areal_kl_type")


def _algorithm(sheet: Sheet) -> str | None:
    mean, std = _levels(sheet, "reward_norm")
    penalty, facts = sheet.get("areal_kl", 0.0) > 0, ("norm_mean", "norm_std", "norm_leave_one_out")
    critic = sheet.has("critic_path") or any(row.key == "critic.model" for row in sheet.rows)
    if _levels(sheet, "adv_norm") not in (("none", "none"), ("batch", "batch")):
        sheet.refuse("normalise advantages in another way than over all tokens of a step", "adv_mean", "adv_std")
        return None
    if "group" in (mean, std) and "batch" in (mean, std):
        sheet.refuse(f"rewards less the mean of their {mean}, over the deviation of their {std}", *facts)
        return None
    if critic:
        return "ppo" if _of_step(sheet, mean, std, facts, "ppo") else None
    if mean == "group":
        if sheet.get("norm_leave_one_out", False):
            if std == "none" and not penalty:
                sheet.take("algorithm.name", "rloo", *facts, why="the mean of the others of a group")
                return "rloo"
            sheet.refuse("the mean of the others of a group, with a deviation or a penalty", *facts)
            return None
        if not penalty:
            sheet.take("algorithm.advantage_std", std == "group", "norm_std")
            sheet.take("algorithm.name", "grpo", *facts)
            return "grpo"
        if std == "none":
            sheet.take("algorithm.group_baseline", True, *facts)
            return "reinforce_pp"
        does = "take a KL penalty token by token from rewards that were divided by the deviation of their group"
        sheet.refuse(does, "areal_kl")
        return None
    return "reinforce_pp" if _of_step(sheet, mean, std, facts, "reinforce_pp") else None


def _levels(sheet: Sheet, section: str) -> tuple[str, str]:
    """Over what means and deviations are; of a section that is there, `batch` where it does not say."""
    given = {row.entry.key: row for row in sheet.rows if row.entry.key.startswith(f"actor.{section}.")}

    def level(field: str) -> str:
        row = given.get(f"actor.{section}.{field}_level")
        if row is None:
            return "batch" if given else "none"
        return str(row.value or "none")

    return level("mean"), level("std")


def _of_step(sheet: Sheet, mean: str, std: str, facts: tuple[str, ...], name: str) -> bool:
    """Rewards as they are, or normalised over the step."""
    if (mean, std) == ("batch", "batch") and not sheet.get("norm_leave_one_out", False):
        sheet.take("algorithm.normalize_rewards", True, *facts)
    elif (mean, std) != ("none", "none"):
        sheet.refuse(f"rewards less the mean of their {mean}, over the deviation of their {std}, with {name}", *facts)
        return False
    sheet.nothing("rewards are not normalised", *facts)
    return True


def _advantages(sheet: Sheet, name: str) -> None:
    on = _levels(sheet, "adv_norm")[0] == "batch"
    key = "algorithm.normalize_advantages"
    if on or name in ("ppo", "reinforce_pp"):
        sheet.take(key, on, "adv_mean", "adv_std")
    sheet.nothing("advantages are not normalised once more", "adv_mean", "adv_std")


def _penalty(sheet: Sheet, name: str) -> None:
    weight = sheet.get("areal_kl", 0.0)
    if not weight:
        sheet.nothing("there is no KL penalty", "areal_kl_type")
        sheet.take("algorithm.kl_coef", 0.0, "areal_kl")
        return
    kind = sheet.get("areal_kl_type", "k1")
    sheet.values.update({"algorithm.kl_in": "reward", "algorithm.kl_estimator": kind})
    sheet.take("algorithm.kl_estimator", kind, "areal_kl_type")
    sheet.take("algorithm.kl_coef", weight, "areal_kl", why=f"in the reward of each token, by {kind}")


def _scale(sheet: Sheet) -> None:
    """There, (reward + bias) x scaling is cut to +-clip; here rewards are only cut."""
    scaling, bias, clip = sheet.get("reward_scaling", 1.0), sheet.get("reward_bias", 0.0), sheet.get("reward_clip")
    values, key = sheet.values, "algorithm.reward_clip"
    undone = values.get("algorithm.advantage_std") or (
        values.get("algorithm.normalize_advantages") and values.get("algorithm.kl_in") != "reward"
    )
    undone = undone and values.get("algorithm.name") != "ppo"
    centred = (
        undone or values.get("algorithm.name") in ("grpo", "gspo", "rloo") or values.get("algorithm.group_baseline")
    )
    if scaling <= 0 or (scaling != 1 and not undone):
        sheet.refuse("multiply rewards, which no deviation divides afterwards", "reward_scaling")
    if bias != 0 and not centred:
        sheet.refuse("add to rewards, from which no mean is taken off afterwards", "reward_bias")
    sheet.nothing("rewards are divided by their deviation afterwards", "reward_scaling") if scaling != 1 else None
    sheet.nothing("the mean of the rewards is taken off afterwards", "reward_bias") if bias != 0 else None
    sheet.nothing("rewards are taken as they are", "reward_scaling", "reward_bias")
    if clip is None or scaling <= 0:
        sheet.nothing("rewards are not cut", "reward_clip")
        return
    low, high = -clip / scaling - bias, clip / scaling - bias
    if bias == 0:
        sheet.take(key, high, "reward_clip", why="" if scaling == 1 else f"{clip:g} of rewards times {scaling:g}")
        return
    given = sheet.has("reward_clip", given=True)
    sheet.refuse(f"cut rewards to {low:g} .. {high:g}; here bounds are +-reward_clip", "reward_clip", learns=given)
