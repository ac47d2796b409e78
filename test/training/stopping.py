"""How tests stop a run as a user does: by a signal, at a moment that they choose."""

import os
import signal

from pixel_perception.training.monitor import Monitor


def stopping(monkeypatch, step):
    """The process is told to stop when it has logged a step."""
    log = Monitor.log

    def tell(self, progress, *rest):
        log(self, progress, *rest)
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Monitor, "log", tell)
