"""Packages that Pentad can do without, and that some settings need."""

import importlib.util

from pentad.errors import UserError


def require(module: str, extra: str, setting: str, otherwise: str) -> None:
    """Whether an optional package is installed; it is not imported.

    Args:
        module: what it is imported as.
        extra: of Pentad, that installs it.
        setting: what needs it.
        otherwise: what the user may do instead.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"{setting} needs the package {extra}, which is not installed",
            f"pip install 'pentad[{extra}]', or {otherwise}",
        )
