"""Calls from several threads that need one model in different states: those that agree run together, others wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager


class Turns:
    """Whose turn it is with a model, among calls that put it into a state for their length."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._state, self._running, self._held = "", 0, ExitStack()

    def __reduce__(self) -> tuple[type[Turns], tuple[()]]:
        """A copy of a model, in this process or another, has turns of its own."""
        return Turns, ()

    @contextmanager
    def held(self, state: str, hold: Callable[[], AbstractContextManager]) -> Iterator[None]:
        """Inside, the model is in this state, into which ``hold`` puts it; calls that need another one wait.

        Inside, a thread may ask for the same state again, but for no other.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._running or self._state == state)
            if not self._running:
                self._held.enter_context(hold())
                self._state = state
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                if not self._running:
                    self._held.close()
                    self._changed.notify_all()
