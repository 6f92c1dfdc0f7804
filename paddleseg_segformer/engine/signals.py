"""SIGTERM, SIGINT, SIGHUP: the step is finished and saved before the process ends."""

import os
import signal
import threading
import time
from contextlib import contextmanager

# paddle.distributed.launch sends SIGTERM three times in 0.6 s, and means one.
REPEATS_WITHIN = 2.0 if "PADDLE_TRAINER_ID" in os.environ else 0.0


class StopSignal:
    """Whether a signal has asked the process to end, since ``with`` took the signals over.

    A second signal ends the process at once.

    Attributes:
        requested: The signal's number, or 0.
    """

    def __init__(self):
        self.requested, self._at, self._ends_at_once = 0, 0.0, False

    @property
    def exit_code(self):
        """What a shell would report of a process that the signal ended, such as 143."""
        return 128 + self.requested

    @contextmanager
    def ends_at_once(self):
        """Within: there is nothing to finish, so that the first signal raises SystemExit."""
        self._ends_at_once = True
        try:
            if self.requested:
                raise SystemExit(self.exit_code)
            yield
        finally:
            self._ends_at_once = False

    def __enter__(self):
        main = threading.current_thread() is threading.main_thread()
        names = ("SIGTERM", "SIGINT", "SIGHUP") if main else ()  # others cannot take them over
        signals = [getattr(signal, name) for name in names if hasattr(signal, name)]
        # What is ignored stays so: nohup's SIGHUP, and SIGINT in the background of a script.
        signals = [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._request) for number in signals}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number, _):
        now = time.monotonic()
        if self.requested and now - self._at > REPEATS_WITHIN:
            os._exit(self.exit_code)
        elif not self.requested:
            self.requested, self._at = number, now
            if self._ends_at_once:
                raise SystemExit(self.exit_code)
