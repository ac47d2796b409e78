"""Lets the training tests import the modules beside them, which pytest's importlib mode leaves out of the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
