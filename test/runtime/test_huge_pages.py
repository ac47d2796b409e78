import sys
import threading

import numpy as np
import pytest

from pixel_perception.runtime import huge_pages


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has them to offer")
def test_memory_keeps_what_it_holds():
    held = np.random.default_rng(0).integers(0, 255, 3 * huge_pages.LEAST, np.uint8)
    before = held.copy()
    spans = huge_pages._large()
    address = held.ctypes.data
    assert any(begin <= address + huge_pages.SIZE < end for begin, end in spans)
    assert all(end - begin >= huge_pages.LEAST and begin % huge_pages.SIZE == end % huge_pages.SIZE == 0 for begin, end in spans)
    thread = huge_pages.advise()
    thread.join(60)
    assert not thread.is_alive() and np.array_equal(held, before)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has them to offer")
def test_memory_that_is_gone_does_no_harm():
    thread = threading.Thread(target=huge_pages._gather, args=([(1 << 40, (1 << 40) + huge_pages.LEAST)],))
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert huge_pages.advise() is None
