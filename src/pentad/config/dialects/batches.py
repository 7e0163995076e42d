"""From sizes of batches, epochs and warmups of other systems to counts of steps.

Invariant: a number of samples or rows becomes a number of steps only by an exact division, or with a note.
"""

import math
from typing import Literal

from pentad.config.dialects.facts import Sheet

type Unit = Literal["step", "update"]


def assemble(sheet: Sheet, *, warmup_unit: Unit, steps_unit: Unit) -> None:
    """Set sizes of batches, numbers of steps, the warmup and the token budget."""
    _samples(sheet)
    updates = _updates(sheet)
    _lengths(sheet)
    _budget(sheet)
    _steps(sheet, updates if steps_unit == "update" else 1)
    _warmup(sheet, updates if warmup_unit == "step" else 1, updates)
    _intervals(sheet)


def _samples(sheet: Sheet) -> None:
    """Prompts a step."""
    if sheet.has("prompts"):
        prompts = sheet.get("prompts")
        sheet.take("trainer.prompts_per_step", prompts, "prompts")
        return
    if not sheet.of("samples", "device_samples"):
        sheet.nothing("there is no size of batches beside it", "accumulation")
        return
    # TRL: samples of one generation are divided over `steps_per_generation` optimizer steps.
    each, accumulation = sheet.get("device_samples", 8), sheet.get("accumulation", 1)
    devices = sheet.gpus or sheet.get("gpus", 1)
    per_update = each * accumulation * devices
    total = sheet.get("samples") or each * sheet.get("minibatches", accumulation) * devices
    group = sheet.values.get("rollout.n", 8)
    if total % group:
        sheet.refuse(f"{total} samples a step, which groups of {group} do not divide", "samples", "device_samples")
        return
    facts = ("samples", "device_samples", "accumulation")
    why = f"{total} samples on {devices} GPU{'s' if devices > 1 else ''}, in groups of {group}"
    sheet.updates = max(1, total // per_update)
    sheet.take("trainer.prompts_per_step", total // group, *facts, why=why)


def _updates(sheet: Sheet) -> int:
    """Optimizer steps of a step: how many minibatches the batch is divided into."""
    prompts = sheet.values.get("trainer.prompts_per_step")
    found = sheet.updates
    if sheet.get("reuse", 1) != 1:
        sheet.refuse(f"train on each batch {sheet.get('reuse')} times", "reuse")
    sheet.nothing("each sample is trained on once", "reuse")
    key = "algorithm.optimizer_steps"
    if sheet.has("mini_prompts") and prompts:
        size = min(sheet.get("mini_prompts"), prompts)
        if sheet.get("mini_prompts") < 1 or prompts % size:
            sheet.refuse(f"minibatches of {size} prompts, which do not divide {prompts}", "mini_prompts")
        else:
            found = prompts // size
            sheet.take(key, found, "mini_prompts", why=f"{prompts} prompts in minibatches of {size}")
    elif sheet.has("mini_samples") and prompts:
        samples = prompts * sheet.values.get("rollout.n", 1)
        if samples % sheet.get("mini_samples"):
            sheet.refuse(f"minibatches that do not divide {samples} samples", "mini_samples")
        else:
            found = samples // sheet.get("mini_samples")
            sheet.take(key, found, "mini_samples", why=f"{samples} samples a step")
    elif sheet.has("minibatches") and found == 1:
        found = sheet.get("minibatches")
    if sheet.of("minibatches") or (found > 1 and key not in sheet.values):
        sheet.take(key, found, "minibatches")
    sheet.nothing("there is no size of the batch beside it", "mini_prompts", "mini_samples")
    return found


def _lengths(sheet: Sheet) -> None:
    if sheet.has("max_response"):
        sheet.take("rollout.max_response_tokens", sheet.get("max_response"), "max_response")
    if sheet.has("max_prompt"):
        sheet.take("data.max_prompt_tokens", sheet.get("max_prompt"), "max_prompt")
        sheet.nothing("it follows from the lengths of prompt and response", "max_length")
    elif sheet.has("max_length"):
        rest = sheet.get("max_length") - sheet.values.get("rollout.max_response_tokens", 0)
        if rest > 0:
            sheet.take("data.max_prompt_tokens", rest, "max_length", why="what the response leaves")
        sheet.refuse("a length that leaves none for the prompt", "max_length")
    truncation, dropped = sheet.get("truncation", "error"), sheet.get("filter", False)
    facts = ("truncation", "filter")
    if dropped:
        sheet.take("data.too_long", "drop", *facts)
    elif truncation == "error":
        sheet.take("data.too_long", "error", *facts) if sheet.of(*facts) else None
    else:
        sheet.refuse(f"cut long prompts ({truncation})", "truncation")
        sheet.nothing("long prompts are not dropped", "filter")


def _budget(sheet: Sheet) -> None:
    """Tokens of a microbatch; what is learnt does not depend on them."""
    longest = sheet.values.get("data.max_prompt_tokens", 1024) + sheet.values.get("rollout.max_response_tokens", 256)
    key, facts = "trainer.tokens_per_microbatch", ("micro_tokens", "micro_samples", "dynamic")
    by_samples = sheet.has("micro_samples", given=True) and not sheet.get("dynamic", False)
    if sheet.has("micro_tokens", given=True) and not by_samples:
        tokens = sheet.get("micro_tokens")
        why = "" if tokens >= longest else f"the longest sample has {longest}"
        sheet.take(key, max(tokens, longest), "micro_tokens", "dynamic", why=why)
        sheet.nothing("microbatches are planned by tokens", "micro_samples")
    elif by_samples:
        count = sheet.get("micro_samples")
        why = f"{count} sample{'s' if count > 1 else ''} of at most {longest} tokens"
        sheet.take(key, count * longest, "micro_samples", "dynamic", why=why)
        sheet.nothing("microbatches are given in samples", "micro_tokens")
    else:
        sheet.nothing("microbatches are planned by tokens", *facts)
        if longest > 4096:
            sheet.values[key] = longest


def _steps(sheet: Sheet, updates: int) -> None:
    """`trainer.total_steps`, of which one is one batch of prompts."""
    key, prompts = "trainer.total_steps", sheet.values.get("trainer.prompts_per_step")
    if sheet.has("steps"):
        steps = math.ceil(sheet.get("steps") / updates)
        why = f"{sheet.get('steps')} optimizer steps, {updates} a step" if updates > 1 else ""
        sheet.take(key, steps, "steps", why=why)
        sheet.nothing("the number of steps is given", "epochs")
        return
    if not sheet.has("epochs"):
        sheet.missing.setdefault(key, "the file does not say how long to train")
        return
    epochs = sheet.get("epochs")
    if sheet.rows_of_data is None or not prompts:
        sheet.missing[key] = (
            f"{epochs:g} epochs; the number of rows is not known: give trainer.total_steps, or --rows N"
        )
        for row in sheet.of("epochs"):
            row.verdict, row.why = "not given", sheet.missing[key]
        return
    steps = int(sheet.rows_of_data // prompts * epochs)
    if steps < 1:
        sheet.refuse(f"an epoch of {sheet.rows_of_data} rows, which is no batch of {prompts}", "epochs")
        return
    sheet.take(key, steps, "epochs", why=f"{epochs:g} epochs of {sheet.rows_of_data} rows, {prompts} a step")


def _warmup(sheet: Sheet, scale: int, updates: int) -> None:
    """Warmup in optimizer steps; `scale` of them are one unit of the other scheduler."""
    key, facts = "trainer.schedule.warmup_steps", ("warmup_steps", "warmup_ratio")
    if sheet.has("warmup_steps"):
        steps = sheet.get("warmup_steps") * scale
        why = f"{sheet.get('warmup_steps')} steps of {scale} optimizer steps" if scale > 1 else ""
        sheet.take(key, steps, "warmup_steps", why=why)
        sheet.nothing("the number of steps counts", "warmup_ratio")
        return
    ratio = sheet.get("warmup_ratio", 0.0)
    total = sheet.values.get("trainer.total_steps")
    if not sheet.of(*facts):
        return
    if ratio == 0:
        sheet.take(key, 0, "warmup_ratio")
    elif total is not None:
        unit = total * updates // scale
        sheet.take(key, int(ratio * unit) * scale, "warmup_ratio", why=f"{ratio:g} of the run")
    else:
        why = f"{ratio:g} of the run, whose length is not known: give {key}"
        if sheet.has("warmup_ratio", given=True):
            sheet.missing[key] = why
        for row in sheet.of("warmup_ratio"):
            row.verdict, row.why = "not given", why


def _intervals(sheet: Sheet) -> None:
    """Intervals in epochs."""
    prompts = sheet.values.get("trainer.prompts_per_step")
    for fact, key in (("save_epochs", "trainer.save_freq"), ("test_epochs", "trainer.test_freq")):
        if not sheet.has(fact):
            continue
        if key in sheet.values:
            sheet.nothing(f"{key} is given in steps", fact)
        elif sheet.rows_of_data is not None and prompts:
            sheet.take(key, max(1, sheet.rows_of_data // prompts) * sheet.get(fact), fact, why="of an epoch")
        else:
            sheet.refuse(f"every epoch, whose number of steps is not known: give {key}", fact, learns=False)
