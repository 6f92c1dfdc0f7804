"""Web demo: a page and a JSON endpoint that segment uploaded images.

Uploads stay in memory. There is no authentication and no TLS: it is meant for local use.
"""

import base64
import contextlib
import functools
import ipaddress
import json
import logging
import math
import secrets
import signal
import threading
import time
import warnings
from concurrent import futures
from dataclasses import dataclass
from io import BytesIO
from urllib.parse import urlsplit

import cv2
import numpy as np
from flask import Flask, Request, abort, g, jsonify, render_template, request
from PIL import Image, UnidentifiedImageError
from waitress import create_server, wasyncore
from werkzeug.exceptions import HTTPException, ServiceUnavailable

from ..data.image_io import decode_image
from ..data.raster_io import NPY_SIGNATURE, TIFF_SIGNATURES, is_deep_png, read_size
from ..errors import InputError
from ..models import MIN_IMAGE_SIZE
from .channel import CONNECTIONS, REQUEST_SECONDS, Channel

logger = logging.getLogger("paddleseg_segformer")

FORMATS = ("JPEG", "PNG", "WebP", "BMP", "TIFF", "GIF")
HIDDEN = (NPY_SIGNATURE, *TIFF_SIGNATURES)  # of files that most browsers do not show

# Waitress reads an upload before the application runs: up to this multiple of the limit, so that
# the client receives the error message. It closes the connection on larger uploads.
BODY_LIMIT_FACTOR = 2
UNFINISHED_FACTOR = 4  # likewise, of all unfinished uploads together
SHUTDOWN_SECONDS, CLEANUP_SECONDS, SPARE_THREADS = 5, 10, 4

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
POLICY = (
    "default-src 'none'; connect-src 'self'; img-src blob: data:; script-src 'nonce-{0}'; "
    "style-src 'nonce-{0}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Limits:
    """Limits of the server.

    Raises:
        InputError: ``megapixels`` is not a positive number.
    """

    megabytes: float = 20  # of an upload
    megapixels: float = 25  # of an image
    waiting: int = 8  # number of queued images
    seconds: float = 60  # that an image is queued

    def __post_init__(self):
        if not 0 < self.megapixels < math.inf:
            raise InputError(f"--max_megapixels {self.megapixels:g}: must be a number above 0.")


def serve(predictor, host="127.0.0.1", port=8000, limits=Limits()):
    """Serve a ``Predictor`` until SIGINT or SIGTERM; a second signal ends the process immediately.

    Port 0 means any free port.

    Raises:
        InputError: Host or port cannot be used.
    """
    names = _local_names(host)
    app = create_app(predictor, limits, names)
    sockets = {}
    server = _listen(app, host, port, limits, sockets)
    _stop_on_signals(app.extensions["model"])
    # Silence waitress and Pillow; clients receive the HTTP error.
    logging.getLogger("waitress").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="PIL")
    shown = f"[{host}]" if ":" in host else host
    logger.info("http://%s:%s/ (Ctrl-C to stop)", shown, getattr(server, "effective_port", port))
    if names is None:
        logger.warning("Other machines can reach the server, without TLS and without a password")
    _run(sockets)
    logger.info("stopped")


def _run(sockets):
    """Serve until SystemExit, then send pending responses for up to ``SHUTDOWN_SECONDS``."""

    def is_pending(channel):
        return getattr(channel, "requests", ()) or getattr(channel, "total_outbufs_len", 0) > 0

    with contextlib.suppress(SystemExit):
        wasyncore.loop(1, map=sockets)
    end = time.monotonic() + SHUTDOWN_SECONDS
    while time.monotonic() < end and any(map(is_pending, list(sockets.values()))):
        wasyncore.loop(0.1, map=sockets, count=1)


def _listen(app, host, port, limits, sockets):
    if not 0 <= port < 1 << 16:
        raise InputError(f"--port {port}: must be a number from 0 to 65535.")
    max_body = int(BODY_LIMIT_FACTOR * limits.megabytes * 1e6)
    try:
        server = create_server(
            app,
            sockets,  # waitress adds the server's and the clients' sockets
            host=host,
            port=port,
            threads=1 + limits.waiting + SPARE_THREADS,
            connection_limit=2 * CONNECTIONS,  # out of reach
            channel_timeout=REQUEST_SECONDS,
            cleanup_interval=CLEANUP_SECONDS,
            max_request_header_size=1 << 15,
            channel_request_lookahead=1,  # detects clients that disconnect
            max_request_body_size=max_body,
            inbuf_overflow=2 * max_body,  # out of reach: larger buffers become temporary files
            outbuf_overflow=1 << 40,
            ident=None,
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--host {host} --port {port}: cannot be used ({reason}).") from error
    for listening in sockets.values():
        listening.channel_class = functools.partial(
            Channel, unfinished_limit=int(UNFINISHED_FACTOR * limits.megabytes * 1e6)
        )
    return server


def _stop_on_signals(model):
    def stop(*_):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        model.close()
        raise SystemExit  # ends the loop in _run

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def create_app(predictor, limits=Limits(), names=None):
    """Create the Flask application that serves a ``Predictor``.

    ``names`` are the allowed names in the Host header; None allows any. On a server for the local
    machine only, this prevents DNS rebinding.
    """
    app = Flask(__name__, static_folder=None, template_folder=".")
    app.request_class = InMemoryRequest
    model = app.extensions["model"] = SharedModel(predictor, limits)

    @app.before_request
    def check_origin():
        g.nonce = secrets.token_urlsafe(16)
        if names is not None and _host_name(request.headers) not in names:
            abort(403, "The server has no such name; use localhost or 127.0.0.1.")
        if request.method == "POST" and _is_cross_origin(request.headers):
            abort(403, "Cross-origin requests are not allowed.")

    @app.after_request
    def add_security_headers(response):
        response.headers.update(HEADERS)
        response.headers["Content-Security-Policy"] = POLICY.format(g.nonce)
        return response

    @app.get("/")
    def page():
        values = {"nonce": g.nonce, "limits": limits, "classes": len(predictor.classes)}
        return render_template("serve.html", **values)

    @app.post("/api/segment")
    def segment():
        data = _uploaded_image(limits)
        _check_image_header(data, limits)
        is_disconnected = request.environ.get("waitress.client_disconnected", lambda: False)
        prediction, seconds = model(data, is_disconnected)
        is_shown = not (data.startswith(HIDDEN) or is_deep_png(data))
        return jsonify(_response(prediction, seconds, is_shown))

    @app.errorhandler(Exception)
    def error_response(error):
        if isinstance(error, HTTPException):
            response = error.get_response()
            response.data = json.dumps({"error": error.description})
            response.content_type = "application/json"
            return response
        if isinstance(error, InputError):
            return jsonify(error=str(error)), 422
        if isinstance(error, MemoryError):
            return jsonify(error="The server does not have enough memory for this image."), 413
        logger.error("%s %s", request.method, request.path, exc_info=error)
        return jsonify(error="The model failed on this image; see the server's log."), 500

    return app


class InMemoryRequest(Request):
    """A request whose uploads stay in memory; Werkzeug's default writes large ones to files."""

    def _get_file_stream(self, *_, **__):
        return BytesIO()


class SharedModel:
    """A ``Predictor`` for requests from several threads, with a bounded queue.

    One worker thread runs the model: Paddle's settings and operator threads belong to the thread
    that calls it.
    """

    def __init__(self, predictor, limits):
        self._predictor, self._limits, self._seconds = predictor, limits, 1.0
        self._slots = threading.BoundedSemaphore(1 + limits.waiting)
        self._thread = futures.ThreadPoolExecutor(1, "model")

    def __call__(self, data, is_disconnected):
        """Segment an image file's bytes: the ``Prediction``, and the time in seconds it took.

        ``is_disconnected`` is a function that returns whether the client has disconnected.

        Raises:
            ServiceUnavailable: The queue is full, or the image was queued for too long.
            InputError: The image is damaged.
        """
        if not self._slots.acquire(blocking=False):
            raise self._unavailable("The server's queue is full.")
        try:
            future = self._thread.submit(self._segment, data, is_disconnected)
        except RuntimeError as error:
            raise self._unavailable("The server is stopping.") from error
        future.add_done_callback(lambda _: self._slots.release())
        try:
            return future.result(self._limits.seconds)
        except futures.TimeoutError as error:
            if future.cancel():
                raise self._unavailable("The server is busy with other images.") from error
            return future.result()  # it is being segmented already
        except futures.CancelledError as error:
            raise self._unavailable("The server is stopping.") from error

    def close(self):
        """Accept no more images, and cancel the queued ones."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _segment(self, data, is_disconnected):
        if is_disconnected():
            raise self._unavailable("The client has disconnected.")
        start = time.monotonic()
        image = _decode(data, self._predictor)
        (prediction,) = self._predictor.segment_decoded([image])
        self._seconds = time.monotonic() - start
        return prediction, self._seconds

    def _unavailable(self, text):
        """An error that asks clients to retry after the time that the last image took."""
        return ServiceUnavailable(text, retry_after=math.ceil(self._seconds))


def _decode(data, predictor):
    """Decode an image as in training; Pillow checks first, as OpenCV accepts truncated files."""
    try:
        if not data.startswith(HIDDEN):
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                image.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many types on damaged files
        raise InputError(f"The image is damaged: {error}.") from error
    return decode_image(data, "The file", predictor.channels, predictor.check_type)


def _uploaded_image(limits):
    """The bytes of the image: the form field ``image``, or the whole request body."""
    if (request.content_length or 0) > limits.megabytes * 1e6:
        abort(413, f"The file is larger than {limits.megabytes:g} MB.")
    if request.mimetype != "multipart/form-data":
        data = request.get_data()
    elif "image" in request.files:
        data = request.files["image"].read()
    else:
        abort(400, "The form has no file field called image.")
    return data or abort(400, "The file is empty.")


def _check_image_header(data, limits):
    """Reject unknown formats and sizes out of range before decoding."""
    bands = 3
    try:
        if data.startswith(HIDDEN):
            width, height, bands = read_size(data)
        else:
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
    except Image.DecompressionBombError:
        width = height = math.inf
    except Exception as error:  # Pillow and rasterio raise many types on damaged files
        if not (data.startswith(HIDDEN) or isinstance(error, UnidentifiedImageError)):
            abort(422, f"The image cannot be read: {error}.")
        formats = f"{', '.join(FORMATS)} and NumPy"
        abort(415, f"The file is not an image; supported formats are {formats}.")
    # More bands than three need as much more memory.
    if width * height * max(bands, 3) / 3 > limits.megapixels * 1e6:
        abort(413, f"The image has more than {limits.megapixels:g} megapixels.")
    if min(width, height) < MIN_IMAGE_SIZE:
        abort(422, f"The image is smaller than {MIN_IMAGE_SIZE} x {MIN_IMAGE_SIZE} pixels.")


def _response(prediction, seconds, is_shown):
    """The JSON response; with a picture of the image if browsers do not show its file."""
    labels = prediction.label_map
    counts = np.bincount(labels.ravel())
    present = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist()
    classes = [
        {
            "index": index,
            "name": prediction.classes[index],
            "colour": "#" + bytes(prediction.palette[index]).hex(),
            "share": counts[index] / labels.size,
        }
        for index in present
    ]
    png = cv2.imencode(".png", labels)[1].tobytes()
    picture = None
    if not is_shown:
        bgr = cv2.cvtColor(prediction.image, cv2.COLOR_RGB2BGR)
        picture = base64.b64encode(cv2.imencode(".jpg", bgr)[1].tobytes()).decode()
    return {
        "width": labels.shape[1],
        "height": labels.shape[0],
        "classes": classes,
        "label_map": base64.b64encode(png).decode(),
        "picture": picture,
        "seconds": round(seconds, 3),
    }


def _local_names(host):
    """The names of a server that only the local machine can reach; None for other hosts."""
    is_local = host == "localhost"
    with contextlib.suppress(ValueError):
        is_local = ipaddress.ip_address(host).is_loopback
    return {"localhost", "127.0.0.1", "::1", host} if is_local else None


def _host_name(headers):
    """The host name in the Host header; its port may be that of a tunnel."""
    with contextlib.suppress(ValueError):
        return urlsplit(f"//{headers.get('Host', '')}").hostname


def _is_cross_origin(headers):
    """Whether a browser sends a request for another site's page; other clients set no headers."""
    site, origin, host = (headers.get(key) for key in ("Sec-Fetch-Site", "Origin", "Host"))
    if site is not None:
        return site != "same-origin"
    return origin not in (None, f"http://{host}", f"https://{host}")
