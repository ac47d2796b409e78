"""A mailbox that holds one item: the newest."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Mailbox(Generic[Item]):
    """The newest item and its number. Several readers may look at it; nothing queues up.

    Items are numbered from 1. A reader that remembers the last number it saw knows whether there is something new
    and how many it has missed.
    """

    def __init__(self, changed: threading.Condition | None = None) -> None:
        """`changed` is notified when an item arrives; several mailboxes may share one, so that one thread waits for all."""
        self.changed = changed or threading.Condition()
        self._item: Item | None = None
        self._number = 0
        self._closed = True

    def open(self) -> None:
        """Let items in."""
        with self.changed:
            self._closed = False

    def close(self) -> None:
        """Forget the item and let no other in."""
        with self.changed:
            self._closed = True
            self._item = None
            self.changed.notify_all()

    def put(self, item: Item) -> bool:
        """Replace whatever is there. Returns False when the mailbox is closed."""
        with self.changed:
            if self._closed:
                return False
            self._number += 1
            self._item = item
            self.changed.notify_all()
            return True

    def newest(self, after: int = 0) -> tuple[int, Item] | None:
        """The item with its number, or None when there is none with a number above `after`."""
        with self.changed:
            if self._item is None or self._number <= after:
                return None
            return self._number, self._item

    @property
    def count(self) -> int:
        """How many items have arrived so far."""
        return self._number
