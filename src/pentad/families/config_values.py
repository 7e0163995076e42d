"""The values of one `config.json`, with those that transformers takes where the file says nothing.

Invariant: a value that is absent is the family's default; a value that is null is null, as in transformers.
"""

from collections.abc import Mapping
from typing import Any

from pentad.errors import UserError


class ConfigValues:
    """
    Args:
        given: the contents of `config.json`.
        defaults: values that are absent.
        where: the file's name, for errors.
    """

    def __init__(self, given: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> None:
        self.where = where
        self._given = given
        self._values = {**defaults, **given}

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or `default` where it is absent and has none of the family's."""
        return self._values.get(name, default)

    def size(self, name: str) -> int:
        """A whole number above 0.

        Raises:
            UserError: it is missing, or something else.
        """
        value = self._values.get(name)
        if type(value) is not int or value < 1:
            given = "is missing" if value is None else f"is {value!r}"
            raise UserError(f"{self.where}: {name} {given}", f"give {name} as a whole number above 0")
        return value

    def size_or(self, name: str, default: int) -> int:
        """As `size`, but `default` where it is missing or null."""
        return default if self._values.get(name) is None else self.size(name)

    def first_given(self, *names: str) -> str | None:
        """The first of some names for one thing that the file itself uses."""
        return next((name for name in names if self._given.get(name) is not None), None)
