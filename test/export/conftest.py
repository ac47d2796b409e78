"""What the tests of exporting share."""

import multiprocessing
import resource

import pytest

from pixel_perception.errors import PerceptionError

FORK = multiprocessing.get_context("fork")


def _run(limit, job, sentences):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # Python ignores the signal; writing fails instead
    try:
        job()
        sentences.put("written")
    except PerceptionError as error:
        sentences.put(error.message)


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
