"""The data sets' folders that the tests of the loaders write, in the real formats."""

import importlib.util
from pathlib import Path

import pytest

WRITERS = Path(__file__).parents[1] / "training" / "tasks" / "conftest.py"


@pytest.fixture(scope="session")
def folders():
    """{layout: function that writes a well-formed folder}."""
    spec = importlib.util.spec_from_file_location("data_set_writers", WRITERS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FOLDERS


@pytest.fixture
def make(folders, tmp_path):
    """make(layout) writes a folder and returns its path."""

    def write(layout):
        folder = tmp_path / layout.replace("+", "plus")
        folder.mkdir()
        folders[layout](folder)
        return folder

    return write
