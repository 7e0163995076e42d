"""The exported model of a run.

Invariant: an earlier export is replaced only by a complete one; a process that is killed in between leaves one of the
two.
"""

import shutil
from pathlib import Path

from pentad.cluster.trainers import RoleTrainer


async def export(policy: RoleTrainer, source: Path, target: Path, *, replace: bool = True) -> None:
    """Write the policy as a Hugging Face directory.

    Args:
        source: the model that training began with, for everything beside the weights.
        target: the directory.
        replace: write anew where it exists.

    Raises:
        UserError: it cannot be written.
    """
    if target.exists() and not replace:
        return
    new, old = (target.with_name(target.name + suffix) for suffix in (".new", ".old"))
    if not target.exists():
        if old.exists():
            old.rename(target)
        else:
            await policy.export(source, target)
            return
    for path in (new, old):
        shutil.rmtree(path, ignore_errors=True)
    await policy.export(source, new)
    target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
