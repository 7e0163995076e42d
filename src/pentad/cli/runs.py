"""`pentad report` and `pentad runs`: what people look at.

Invariant: nothing is written but the page that is asked for.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pentad.errors import UserError

_PORT = 8765
COMPARE = "compare"
RUNS_EXAMPLES = """examples:
  pentad runs                              the runs in ./runs
  pentad runs DIR                          those in another directory
  pentad runs compare runs/a runs/b        settings that differ, and a page with both curves in each picture"""


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `pentad report`."""
    parser.add_argument("run", metavar="RUN", type=Path, help="a run directory")
    parser.add_argument("--serve", action="store_true", help="serve a page that renews itself, on this machine alone")
    parser.add_argument("--port", type=int, help=f"with --serve: its port (default {_PORT}; 0: any free one)")


def report(options: argparse.Namespace) -> int:
    """Write report.html, or serve it until Ctrl-C."""
    if options.port is not None and not options.serve:
        raise UserError("--port is read with --serve only", "add --serve, or leave --port out")
    if not options.run.is_dir():
        raise UserError(f"there is no directory {options.run}", "name a run directory, such as runs/NAME")
    from pentad.record.run_dir import RunDir

    if not options.serve:
        from pentad.record.report import write_report

        print(write_report(RunDir(options.run)))
        return 0
    port = _PORT if options.port is None else options.port
    if not 0 <= port < 1 << 16:
        raise UserError(f"--port {port} is no port", "give a number below 65536; 0 takes any free one")
    from pentad.record.serving import ReportServer

    server = ReportServer(RunDir(options.run), port)
    print(f"{server.url} shows {options.run}; Ctrl-C ends it", flush=True)
    try:
        server.serve()
    except KeyboardInterrupt:
        print("ended")
    return 0


def add_runs_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `pentad runs`."""
    parser.add_argument(
        "what", metavar="DIR | compare RUN RUN ...", nargs="*", help="a directory of runs (default runs), or runs"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="with compare: the page (default compare.html)")


def runs(options: argparse.Namespace) -> int:
    """List runs, or compare some."""
    what = options.what
    if what[:1] == [COMPARE]:
        if len(what) < 3:
            raise UserError("`pentad runs compare` needs two runs or more", "write `pentad runs compare RUN RUN`")
        return compare([Path(each) for each in what[1:]], options.out or Path("compare.html"))
    if options.out is not None:
        raise UserError("--out is read with compare only", "leave --out out, or write `pentad runs compare RUN RUN`")
    if len(what) > 1:
        raise UserError(f"{len(what)} directories are given", "name one, or write `pentad runs compare RUN RUN`")
    return list_runs(Path(what[0]) if what else Path("runs"))


def list_runs(directory: Path) -> int:
    """Print a line for each run; those that were written to last at the end."""
    from pentad.record.run_list import find_runs
    from pentad.record.terminal import duration

    found = find_runs(directory)
    if not found:
        print(f"{directory} holds no runs")
        return 0
    rows = []
    for run in found:
        total = "" if run.total is None else f"/{run.total}"
        evals = "  ".join(f"{name} {value:.4g}" for name, value in run.evals.items())
        rows.append(
            (
                run.name,
                run.state,
                "" if run.step is None else f"{run.step}{total}",
                "" if run.reward is None else f"{run.reward:.3f}",
                evals,
                "" if run.seconds is None else duration(run.seconds),
                str(run.path),
            )
        )
    _print_table(("name", "state", "steps", "reward", "evaluations", "time", "directory"), rows)
    return 0


def compare(paths: Sequence[Path], target: Path) -> int:
    """Print what differs between runs, and write a page with their curves."""
    from pentad.record.comparison import read_by_all, run_labels, write_comparison
    from pentad.record.run_data import load_run
    from pentad.record.run_list import describe_run

    differences = write_comparison(paths, target)
    labels = run_labels([load_run(path) for path in paths], paths)
    shown = read_by_all(differences)
    if shown:
        _print_table(("setting", *labels), [(name, *values) for name, values in shown.items()])
    else:
        print("no setting differs")
    if others := len(differences) - len(shown):
        print(f"{others} settings that not all of them have are on the page")
    described = [describe_run(path) for path in paths]
    names = dict.fromkeys(name for run in described for name in run.evals)
    rows = [
        ("state", *(run.state for run in described)),
        ("steps", *(str(run.step) for run in described)),
        ("reward", *(_number(run.reward) for run in described)),
        *((f"eval {name}", *(_number(run.evals.get(name)) for run in described)) for name in names),
    ]
    _print_table(("latest", *labels), rows)
    print(f"{target}: the curves")
    return 0


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*headings, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 240
    console.print(table)
