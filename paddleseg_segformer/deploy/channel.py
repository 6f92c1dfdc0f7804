"""Connections of the web demo, which clients that never finish cannot use up."""

import time

from waitress.channel import HTTPChannel

CONNECTIONS = 64
REQUEST_SECONDS = 60  # to send a request, or to read a response


class Channel(HTTPChannel):
    """A connection with limits of Waitress's that a slow client does not renew.

    Waitress's time limit starts anew with every byte; this one is of a whole request or response.
    One more connection than ``CONNECTIONS``, and more bytes of unfinished uploads than
    ``unfinished_limit``, close the connection whose request began first. None is closed while its
    request is processed.
    """

    def __init__(self, *args, unfinished_limit, **kwargs):
        self._unfinished_limit = unfinished_limit  # bytes, of all connections together
        super().__init__(*args, **kwargs)
        if len(self._open_channels()) > CONNECTIONS:
            self._close_oldest()

    @property
    def last_activity(self):
        """When the request or response began; Waitress sets it at every byte."""
        return self._began

    @last_activity.setter
    def last_activity(self, now):
        if self.request is None and not self.total_outbufs_len:
            self._began = now

    def write_soon(self, data):
        if not self.total_outbufs_len:  # a response begins
            self._began = time.time()
        return super().write_soon(data)

    def handle_read(self):
        super().handle_read()
        requests = (channel.request for channel in self._open_channels())
        unfinished = sum(request.body_bytes_received for request in requests if request)
        if unfinished > self._unfinished_limit:
            self._close_oldest()

    def _open_channels(self):
        channels = [c for c in self._map.values() if isinstance(c, Channel)]
        return [channel for channel in channels if not channel.will_close]

    def _close_oldest(self):
        channels = [channel for channel in self._open_channels() if not channel.requests]
        if channels:
            min(channels, key=lambda channel: channel.last_activity).will_close = True
