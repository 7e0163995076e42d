"""What is left to put together: names, data, rewards, adapters, checkpoints, staleness."""

import re
from pathlib import PurePosixPath

from pentad.config.dialects.facts import Sheet
from pentad.config.dialects.trinity import hub_source
from pentad.config.dialects.values import safe_name

_FRESH = ("disable", "disabled", "none", "null", "", "off")


def assemble(sheet: Sheet) -> None:
    """Set all settings that no other assembly does."""
    _name(sheet)
    _data(sheet)
    _reward(sheet)
    _adapters(sheet)
    _resume(sheet)
    _schedule(sheet)
    _staleness(sheet)
    _evaluation(sheet)


def _name(sheet: Sheet) -> None:
    if not sheet.has("name"):
        sheet.nothing("there is no name beside it", "trial")
        return
    given = "-".join(str(sheet.get(fact)) for fact in ("name", "trial") if sheet.has(fact))
    name = safe_name(given)
    sheet.take("experiment.name", name, "name", "trial", why="" if name == given else f"from {given}")


def _data(sheet: Sheet) -> None:
    for fact, key in (("train", "data.train"), ("eval", "data.eval")):
        split = f"{fact}_split"
        if not sheet.has(fact):
            sheet.nothing("there is no source beside it", split)
            continue
        value = sheet.get(fact)
        if isinstance(value, str):
            config = sheet.get("train_config")
            value = hub_source(value, config, sheet.get(split))
            if fact == "eval":
                value = {safe_name(PurePosixPath(sheet.get(fact)).name): value}
        facts = (fact, split) if fact == "eval" else (fact, split, "train_config")
        sheet.take(key, value, *facts)
    sheet.nothing("there is no source beside it", "train_config")


def _reward(sheet: Sheet) -> None:
    path, function = sheet.get("reward_path"), sheet.get("reward_function")
    if path:
        sheet.take("reward.name", f"{path}:{function or 'compute_score'}", "reward_path", "reward_function")
    sheet.nothing("there is no path of a reward beside it", "reward_function")
    named, weights = sheet.get("rewards", []), sheet.get("reward_weights")
    if len(named) == 1 and weights in (None, [1], [1.0]):
        sheet.take("reward.name", named[0], "rewards")
    elif named and weights is not None and (not isinstance(weights, list) or len(weights) != len(named)):
        sheet.refuse(f"{len(named)} rewards with weights {weights}", "rewards", "reward_weights")
    elif named:
        keys = [name.rpartition(":")[2] for name in named]
        keys = [key if keys.count(key) == 1 else f"{key}-{number + 1}" for number, key in enumerate(keys)]
        functions = {
            key: name if weights is None else {"name": name, "weight": float(weight)}
            for key, name, weight in zip(keys, named, weights or named, strict=True)
        }
        sheet.take("reward.functions", functions, "rewards", "reward_weights", why="their weighted sum")
    sheet.nothing("there is no reward beside it", "reward_weights")


def _adapters(sheet: Sheet) -> None:
    rank = sheet.get("lora_rank", 0)
    facts = ("use_lora", "lora_rank", "lora_alpha", "lora_targets")
    if sheet.get("use_lora", True) is False or (not rank and not sheet.get("use_lora", False)):
        sheet.nothing("there are no adapters", *facts)
        return
    rank = rank or 32
    if sheet.has("lora_alpha"):
        sheet.take("model.lora.alpha", sheet.get("lora_alpha"), "lora_alpha")
    if sheet.has("lora_targets"):
        sheet.take("model.lora.targets", sheet.get("lora_targets"), "lora_targets")
    sheet.take("model.lora.rank", rank, "use_lora", "lora_rank")


def _resume(sheet: Sheet) -> None:
    if not sheet.has("resume"):
        if sheet.get("resume_path"):
            sheet.take("trainer.resume_mode", sheet.get("resume_path"), "resume_path")
        return
    mode = str(sheet.get("resume")).lower()
    if mode in ("auto", "latest", "fault", "resume", "on"):
        sheet.take("trainer.resume_mode", "auto", "resume")
    elif mode in _FRESH:
        sheet.take("trainer.resume_mode", "disable", "resume")
    elif mode in ("resume_path", "from_path") and sheet.get("resume_path"):
        why = "a checkpoint of Pentad; `pentad convert` makes one of a model"
        sheet.take("trainer.resume_mode", sheet.get("resume_path"), "resume", "resume_path", why=why)
    sheet.refuse(f"resume by {mode}", "resume")
    sheet.nothing("it is not read with this way of resuming", "resume_path")


def _schedule(sheet: Sheet) -> None:
    values, key = sheet.values, "trainer.schedule.min_lr_ratio"
    if sheet.has("min_lr_ratio"):
        sheet.take(key, sheet.get("min_lr_ratio"), "min_lr_ratio")
        sheet.nothing("the ratio counts", "min_lr")
    elif sheet.has("min_lr"):
        highest = values.get("trainer.optimizer.lr", 1e-6)
        sheet.take(key, sheet.get("min_lr") / highest if highest else 0.0, "min_lr", why="over the highest rate")
    if sheet.of("beta1", "beta2"):
        betas = [sheet.get("beta1", 0.9), sheet.get("beta2", 0.999)]
        sheet.take("trainer.optimizer.betas", betas, "beta1", "beta2")


def _staleness(sheet: Sheet) -> None:
    """Publications of weights between sampling and training."""
    key = "trainer.max_staleness"
    if sheet.has("staleness"):
        value, facts = sheet.get("staleness"), ("staleness",)
    elif sheet.has("sync_interval"):
        value, facts = sheet.get("sync_interval") + sheet.get("sync_offset", 0) - 1, ("sync_interval", "sync_offset")
    else:
        sheet.nothing("there is no interval beside it", "sync_offset")
        return
    if value == 0:
        sheet.nothing("each batch is sampled with the newest weights", *facts)
    else:
        allocation = str(sheet.values.get("allocation", ""))
        shared = "|" in re.sub(r"\([^)]*\)", "", allocation) and "allocation" not in sheet.given
        if shared and value > 0 and key not in sheet.given:
            does = (
                f"samples of weights that are {value} older need engines on GPUs of their own, and {allocation} shares "
                "them with the trainer: give allocation=ENGINE+TRAINER, or trainer.max_staleness=0"
            )
            sheet.refuse(does, *facts)
            return
        sheet.take(key, max(0, value), *facts, why="publications of weights between sampling and training")


def _evaluation(sheet: Sheet) -> None:
    greedy = sheet.get("eval_sampling") is False
    if sheet.has("eval_sampling") or sheet.has("eval_temperature"):
        temperature = 0.0 if greedy else sheet.get("eval_temperature", 1.0)
        sheet.take("rollout.eval_temperature", temperature, "eval_temperature", "eval_sampling")
    if sheet.has("eval_n"):
        several = sheet.get("eval_n") or 1
        if several > 1 and not sheet.values.get("rollout.eval_temperature"):
            sheet.take("rollout.eval_n", 1, "eval_n", why="samples of an evaluation at temperature 0 are all the same")
        else:
            sheet.take("rollout.eval_n", several, "eval_n")
