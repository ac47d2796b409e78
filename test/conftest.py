"""For all tests: how hypothesis draws, and helpers beside this file as modules, which pytest's importlib mode leaves out of the path."""

import sys
from pathlib import Path

from hypothesis import settings

# A busy machine is no failure: how long one example takes says nothing about it being right. Examples are the same each time.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

sys.path.insert(0, str(Path(__file__).parent))
