"""Rows of a source, and what is refused of one."""

from typing import Any

import pytest

from pentad.config.schema.data import DataSettings
from pentad.data.dataset import load_train_rows
from pentad.errors import UserError


def settings_for(source: object, **more: Any) -> DataSettings:
    return DataSettings(train=str(source), **more)


def refuse(source: object, *fragments: str, **more: Any) -> UserError:
    """Reading it fails with a message of those fragments."""
    with pytest.raises(UserError) as caught:
        load_train_rows(settings_for(source, **more))
    for fragment in fragments:
        assert fragment in str(caught.value)
    return caught.value
