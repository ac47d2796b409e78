"""What the tests of the loaders share."""

import json

import pytest
from data_sets_on_the_spot import make  # noqa: F401


@pytest.fixture
def edit():
    """edit(path, change) rewrites a JSON file after change(value)."""

    def rewrite(path, change):
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return rewrite
