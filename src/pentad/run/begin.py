"""The beginning of a run in its directory, or its going on there.

Invariant: nothing of the directory changes before; afterwards its records end with the checkpoint that is gone on from.
"""

from pentad.record.checkpoints import Checkpoints
from pentad.record.old_runs import KEPT
from pentad.record.rewind import rewind
from pentad.record.run_dir import RunDir
from pentad.record.terminal import Terminal
from pentad.run.resume import Resume


def begin(run_dir: RunDir, resume: Resume | None, terminal: Terminal) -> None:
    """Make the directory this run's; where the run goes on, bring its records back to the checkpoint."""
    if not run_dir.begun:
        run_dir.begin()
    for path in run_dir.removed:
        terminal.message(f"removed {path}: of earlier runs the last {KEPT} are kept")
    checkpoints = Checkpoints(run_dir.checkpoints)
    checkpoints.clean()
    if resume is None:
        rewind(run_dir, -1)
        return
    # First: a run that is killed in between must not go on from a checkpoint whose records are cut off.
    aside = checkpoints.set_aside_after(resume.step)
    cut = rewind(run_dir, resume.step)
    behind = f"; {cut} later step{'s are' if cut > 1 else ' is'} done again" if cut else ""
    terminal.message(f"going on after step {resume.step}, from {resume.checkpoint.path}{behind}")
    for change in resume.changes:
        terminal.message(f"changed since: {change}")
    for path in aside:
        terminal.message(f"{path}: a checkpoint of a later step, set aside")
