"""What each subcommand does. A command imports what it needs when it runs, so that light ones answer at once."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pentad.errors import UserError


def train(path: Path | None, overrides: Sequence[str], *, dry: bool = False) -> int:
    """Check a configuration, and run it or say what it would do."""
    if path is None:
        raise UserError(
            "pentad train needs a configuration",
            "write `pentad train FILE.yaml`, with settings to change as key=value; `pentad config --keys` lists all",
        )
    from pentad.cli.loading import load_run

    loaded = load_run(path, overrides)
    from pentad.run.run import run

    return run(loaded, dry=dry)


def config(options: argparse.Namespace) -> int:
    """Print the effective settings of a configuration, or the list of all settings or metrics."""
    if options.keys or options.metrics:
        sys.stdout.write(_reference(options))
        return 0
    if options.markdown:
        raise UserError("--markdown is for --keys and --metrics only", "write `pentad config --keys --markdown`")
    if options.config is None:
        raise UserError("no configuration is given", "write `pentad config FILE.yaml`, or `pentad config --keys`")
    from pentad.cli.loading import describe_allocation, load_run
    from pentad.config.loading.show import effective_yaml

    loaded = load_run(options.config, options.overrides)
    sys.stdout.write(effective_yaml(loaded))
    sys.stdout.write(f"# {describe_allocation(loaded.settings.allocation)}\n")
    return 0


def _reference(options: argparse.Namespace) -> str:
    flag = "--keys" if options.keys else "--metrics"
    if options.keys and options.metrics:
        raise UserError("--keys and --metrics are both given", "give one of the two")
    if options.config is not None:
        what = "setting" if options.keys else "metric"
        raise UserError(
            f"{flag} lists every {what} and reads no file, but {options.config} is given", "leave the file out"
        )
    if options.keys:
        from pentad.config.loading.show import reference_markdown, reference_text

        return reference_markdown() if options.markdown else reference_text()
    from pentad.record.metric_table import metrics_markdown, metrics_text

    return metrics_markdown() if options.markdown else metrics_text()


def doctor() -> int:
    """Print what is installed and whether it works; 1 if something that Pentad needs does not."""
    from pentad.cli.doctor import examine

    return examine()
