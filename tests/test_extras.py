"""Optional packages are named with the command that installs them."""

import pytest

from pentad.errors import UserError
from pentad.extras import require


def test_a_missing_package_is_refused() -> None:
    require("json", "json", "nothing", "nothing")
    with pytest.raises(UserError) as caught:
        require("no_such_module", "no-such", "data.train=x", "use a file")
    assert caught.value.cause == "data.train=x needs the package no-such, which is not installed"
    assert caught.value.fix == "pip install 'pentad[no-such]', or use a file"
