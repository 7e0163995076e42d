"""From the shaping of rewards and advantages of other systems to `algorithm.*`.

Invariant: a setting that the other system's own algorithm does not read is not taken over.
"""

from pentad.config.dialects.facts import Sheet
from pentad.config.dialects.rules import CREDIT

_OVERLONG = ("overlong_len", "overlong_factor", "overlong_max")


def assemble(sheet: Sheet) -> None:
    """Set entropy, dynamic sampling, the cost of length, discounts and the adapted weight of KL."""
    _entropy(sheet)
    _dynamic(sheet)
    _overlong(sheet)
    _credit(sheet)
    _adapted(sheet)
    sheet.nothing("it says which of the keys beside it are read", "reward_manager")


def _entropy(sheet: Sheet) -> None:
    key = "algorithm.entropy_coef"
    if not sheet.get("entropy_on", True):
        sheet.nothing("entropy is not rewarded", "entropy_on", "entropy")
    elif not sheet.has("entropy"):
        sheet.refuse("reward entropy, with a weight that is not given", "entropy_on")
    elif sheet.has("entropy_on") and sheet.values.get("algorithm.loss_mean", "token") != "token":
        sheet.refuse("a mean of the entropy over tokens beside another mean of the loss", "entropy_on", "entropy")
    elif sheet.get("entropy") < 0:
        sheet.refuse("lower entropy", "entropy_on", "entropy")
    else:
        sheet.take(key, sheet.get("entropy"), "entropy_on", "entropy")


def _dynamic(sheet: Sheet) -> None:
    on = sheet.get("dynamic_sampling", False)
    metric = str(sheet.get("dynamic_metric", "acc"))
    shaped = sheet.get("overlong_on") or sheet.values.get("algorithm.kl_in") == "reward"
    if not on:
        sheet.nothing("no group is filtered", "dynamic_metric")
    elif metric in ("acc", "score") or (metric in ("seq_reward", "seq_final_reward") and not shaped):
        note = "by the reward as the function gives it; prompts are sampled until a step is full"
        sheet.take("algorithm.dynamic_sampling", True, "dynamic_sampling", "dynamic_metric", why=note)
    else:
        does = f"leave out groups by {metric}; here by the reward before the cost of length and the KL penalty"
        sheet.refuse(does, "dynamic_sampling", "dynamic_metric")
    if sheet.has("dynamic_sampling"):
        sheet.take("algorithm.dynamic_sampling", on, "dynamic_sampling")
    prompts = sheet.values.get("trainer.prompts_per_step")
    if sheet.has("gen_prompts") and not on and sheet.get("gen_prompts") != prompts:
        sheet.refuse("sample more prompts than are trained on", "gen_prompts")
    sheet.nothing("prompts are sampled as they are needed", "gen_prompts")


def _overlong(sheet: Sheet) -> None:
    facts = ("overlong_on", *_OVERLONG)
    if not sheet.get("overlong_on", False):
        sheet.nothing("length costs nothing", *facts)
        return
    manager = sheet.get("reward_manager")
    if manager not in (None, "dapo"):
        sheet.nothing(f"the reward manager {manager} does not read it", *facts)
        return
    longest = sheet.values.get("rollout.max_response_tokens")
    size, factor = sheet.get("overlong_len"), sheet.get("overlong_factor", 1.0)
    if not size or not longest or size > longest:
        sheet.refuse("a cost of length whose range is not within the longest response", *facts)
        return
    if sheet.get("overlong_max", longest) != longest:
        sheet.refuse(f"a cost of length up to {sheet.get('overlong_max')} tokens; here to the longest response", *facts)
        return
    sheet.take("algorithm.overlong_penalty", factor, "overlong_factor")
    why = f"{size} of {longest} tokens"
    sheet.take("algorithm.overlong_buffer", size / longest, "overlong_on", "overlong_len", "overlong_max", why=why)


def _credit(sheet: Sheet) -> None:
    """Discounts, the bound of values, and normalisation over a step."""
    name = sheet.values.get("algorithm.name")
    facts = ("gamma", "gae_lambda", "value_clip")
    if name == "ppo":
        for fact in facts:
            if sheet.has(fact):
                sheet.take(f"algorithm.{fact}", sheet.get(fact), fact)
    elif name == "reinforce_pp" and sheet.get("gamma", 1.0) != 1.0:
        sheet.refuse("discount rewards; reinforce_pp does not here", "gamma")
    sheet.nothing(CREDIT, *facts)
    if sheet.has("batch_norm"):
        if name in ("ppo", "reinforce_pp"):
            sheet.nothing(f"{name} normalises advantages over the step in any case", "batch_norm")
        else:
            sheet.take("algorithm.normalize_advantages", sheet.get("batch_norm"), "batch_norm")


def _adapted(sheet: Sheet) -> None:
    facts = ("kl_adapted", "kl_target", "kl_horizon")
    rewarded = sheet.values.get("algorithm.kl_in") == "reward" and sheet.values.get("algorithm.kl_coef", 0) > 0
    if sheet.get("kl_adapted", "fixed") != "adaptive" or not rewarded:
        sheet.nothing("the KL weight is fixed" if rewarded else "there is no KL penalty in the reward", *facts)
        return
    samples = sheet.values.get("trainer.prompts_per_step", 0) * sheet.values.get("rollout.n", 1)
    gain = samples / sheet.get("kl_horizon", 10000)
    if not 0 < gain < 5:
        sheet.refuse("a KL weight that adapts faster than it can here", *facts)
        return
    why = "the KL is a mean over tokens; there over responses, of their means"
    sheet.take("algorithm.kl_target", sheet.get("kl_target", 0.1), "kl_adapted", "kl_target", why=why)
    sheet.take("algorithm.kl_gain", gain, "kl_horizon", why=f"{samples} samples a step over the horizon")
