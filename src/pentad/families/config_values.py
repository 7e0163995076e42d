"""The values of one `config.json`, with those that transformers takes where the file says nothing.

Invariant: a value that is absent is the family's default; a value that is null is null, and stands for another only
where transformers takes it so.
"""

from collections.abc import Mapping
from typing import Any

from pentad.errors import UserError


class ConfigValues:
    """
    Args:
        given: the contents of `config.json`.
        defaults: values that are absent.
        nullable: sizes that may be null, and then follow from others.
        where: the file's name, for errors.
    """

    def __init__(
        self, given: Mapping[str, Any], defaults: Mapping[str, Any], where: str, nullable: frozenset[str] = frozenset()
    ) -> None:
        self.where = where
        self._given = given
        self._values = {**defaults, **given}
        self._nullable = nullable

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
        """As `size`, but `default` where it is absent, or is null and may be.

        Raises:
            UserError: it is null and may not be, or something else.
        """
        if self._values.get(name) is not None:
            return self.size(name)
        if name in self._values and name not in self._nullable:
            raise UserError(
                f"{self.where}: {name} is null, which transformers does not take in a model of this architecture",
                f"give {name} as a whole number above 0",
            )
        return default

    def first_given(self, *names: str) -> str | None:
        """The first of some names for one thing that the file itself uses."""
        return next((name for name in names if self._given.get(name) is not None), None)
