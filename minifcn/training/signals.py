"""Ctrl-C and similar signals are only noted at first, so that a run ends after a complete step."""

import signal
import threading


class Signals:
    """Inside this context the first SIGINT, SIGTERM or SIGUSR1 only sets `number`. A second one acts as without the context."""

    NOTED = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]   # Windows: two

    def __enter__(self):
        self.number, self.before = None, {}
        if threading.current_thread() is threading.main_thread():                   # Python allows it nowhere else
            self.before = {number: signal.signal(number, self._note) for number in self.NOTED}
        return self

    def _note(self, number, frame):
        self.number = number
        self.__exit__()

    def __exit__(self, *exception):
        for number, handler in self.before.items():
            signal.signal(number, handler)
