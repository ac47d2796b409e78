"""For all tests: how hypothesis draws, and helpers beside this file as modules, which pytest's importlib mode leaves out of the path."""

import multiprocessing
import resource
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from pixel_perception.cli import explain

# A busy machine is no failure: how long one example takes says nothing about it being right. Examples are the same each time.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

sys.path.insert(0, str(Path(__file__).parent))

FORK = multiprocessing.get_context("fork")


def _run(limit, job, sentences):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # Python ignores the signal; writing fails instead
    try:
        job()
        sentences.put("written")
    except Exception as error:
        sentences.put(explain(error) or f"a bug: {error!r}")


@pytest.fixture
def without_space():
    """Calls a function, in a process of its own, where no file can grow beyond some bytes; returns the error's sentence."""

    def call(limit, job):
        sentences = FORK.Queue()
        process = FORK.Process(target=_run, args=(limit, job, sentences))
        process.start()
        sentence = sentences.get(timeout=60)
        process.join()
        return sentence

    return call


@pytest.fixture(scope="session")
def pixellm(tmp_path_factory):
    """A tiny PixelLM, its model folder and its bundle: `pixellm_on_the_spot.Served`."""
    from pixellm_on_the_spot import serve

    return serve(tmp_path_factory.mktemp("pixellm"))
