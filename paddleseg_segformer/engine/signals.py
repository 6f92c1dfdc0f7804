"""SIGTERM, SIGINT and SIGHUP: finish and save the step before exiting."""

import os
import signal
import threading
import time
from contextlib import contextmanager

# paddle.distributed.launch sends SIGTERM three times in 0.6 s for one request.
REPEAT_SECONDS = 2.0 if "PADDLE_TRAINER_ID" in os.environ else 0.0


class StopSignal:
    """Context manager that turns the first signal into a request to stop.

    A second signal ends the process immediately.

    Attributes:
        requested: The signal's number, or 0.
    """

    def __init__(self):
        self.requested, self._time, self._exit_immediately = 0, 0.0, False

    @property
    def exit_code(self):
        """The exit code that a shell reports for a process ended by the signal, such as 143."""
        return 128 + self.requested

    @contextmanager
    def exit_immediately(self):
        """Within this context there is nothing to finish: a signal raises SystemExit."""
        self._exit_immediately = True
        try:
            if self.requested:
                raise SystemExit(self.exit_code)
            yield
        finally:
            self._exit_immediately = False

    def __enter__(self):
        main = threading.current_thread() is threading.main_thread()
        names = ("SIGTERM", "SIGINT", "SIGHUP") if main else ()  # only it can set handlers
        signals = [getattr(signal, name) for name in names if hasattr(signal, name)]
        # An ignored signal stays ignored: nohup's SIGHUP, or SIGINT in a script's background job.
        signals = [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, self._request) for number in signals}
        return self

    def __exit__(self, *_):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _request(self, number, _):
        now = time.monotonic()
        if self.requested and now - self._time > REPEAT_SECONDS:
            os._exit(self.exit_code)
        elif not self.requested:
            self.requested, self._time = number, now
            if self._exit_immediately:
                raise SystemExit(self.exit_code)
