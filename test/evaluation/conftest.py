"""Data sets to evaluate on: those that the tests of the loaders write, in the real formats."""

from data_sets_on_the_spot import make  # noqa: F401
