"""A web page and a JSON endpoint that segment images by one model.

Uploads stay in memory. There are no users and no encryption: it is for the machine it runs on.
"""

import base64
import contextlib
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
from PIL import Image
from waitress import create_server, wasyncore
from werkzeug.exceptions import HTTPException

from ..data.image_io import decode_image
from ..errors import InputError
from ..models import MIN_IMAGE_SIZE

logger = logging.getLogger("paddleseg_segformer")

FORMATS = ("JPEG", "PNG", "WebP", "BMP", "TIFF", "GIF")

# Waitress holds an upload before the application sees it. Of one that is too large it takes this
# many times the limit, so that the sender hears why; a still larger one it cuts off.
BODY_LIMIT_FACTOR = 2
CONNECTIONS, CHANNEL_TIMEOUT, SHUTDOWN_SECONDS, SPARE_THREADS = 64, 30, 5, 4

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
    """What the server takes on.

    Attributes:
        megabytes: Of an upload.
        megapixels: Of an image.
        waiting: Images that may wait while another is segmented.
        seconds: For which each may wait.

    Raises:
        InputError: There are to be no pixels.
    """

    megabytes: float = 20
    megapixels: float = 25
    waiting: int = 8
    seconds: float = 60

    def __post_init__(self):
        if not 0 < self.megapixels < math.inf:
            raise InputError(f"--max_megapixels {self.megapixels:g}: must be a number above 0.")


def serve(predictor, host="127.0.0.1", port=8000, limits=Limits()):
    """Serve a model until SIGINT or SIGTERM; a second one ends the process at once.

    Args:
        predictor: ``Predictor``.
        host: The address to listen at.
        port: 0 takes a free one.
        limits: ``Limits``.

    Raises:
        InputError: It cannot listen there.
    """
    names = _own_names(host)
    app = create_app(predictor, limits, names)
    sockets = {}
    server = _listen(app, host, port, limits, sockets)
    _stop_on_signals(app.extensions["model"])
    # Queues, clients that left and damaged uploads are no news: whom it concerns gets an answer.
    logging.getLogger("waitress").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="PIL")
    shown = f"[{host}]" if ":" in host else host
    logger.info("http://%s:%s/ (Ctrl-C stops it)", shown, getattr(server, "effective_port", port))
    if names is None:
        logger.warning("Others can reach this server: it has no TLS and asks for no password.")
    _run(sockets)
    logger.info("stopped")


def _run(sockets):
    """Serve until SystemExit; then for some seconds, as long as there are answers to be sent."""
    with contextlib.suppress(SystemExit):
        wasyncore.loop(1, map=sockets)
    end = time.monotonic() + SHUTDOWN_SECONDS
    while time.monotonic() < end and any(map(_is_answering, list(sockets.values()))):
        wasyncore.loop(0.1, map=sockets, count=1)


def _is_answering(channel):
    return getattr(channel, "requests", ()) or getattr(channel, "total_outbufs_len", 0) > 0


def _listen(app, host, port, limits, sockets):
    if not 0 <= port < 1 << 16:
        raise InputError(f"--port {port}: is no port, which is a number up to 65535.")
    largest = int(BODY_LIMIT_FACTOR * limits.megabytes * 1e6)
    try:
        return create_server(
            app,
            sockets,  # it adds its own, and its clients'
            host=host,
            port=port,
            threads=1 + limits.waiting + SPARE_THREADS,
            connection_limit=CONNECTIONS,
            channel_timeout=CHANNEL_TIMEOUT,
            channel_request_lookahead=1,  # it notices who has left
            max_request_body_size=largest,
            inbuf_overflow=2 * largest,  # never: what is beyond goes to temporary files
            outbuf_overflow=1 << 40,
            ident=None,
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--host {host} --port {port}: cannot be used ({reason}).") from error


def _stop_on_signals(model):
    def stop(*_):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        model.close()
        raise SystemExit  # out of the loop

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def create_app(predictor, limits=Limits(), names=None):
    """The web application.

    Args:
        predictor: ``Predictor``.
        limits: ``Limits``.
        names: By which a browser may call the server; None allows any. Where it is reached by its
            own machine alone, another name means a foreign page whose name was pointed here.

    Returns:
        Flask's application.
    """
    app = Flask(__name__, static_folder=None, template_folder=".")
    app.request_class = InMemoryRequest
    model = app.extensions["model"] = SharedModel(predictor, limits)

    @app.before_request
    def check_sender():
        g.nonce = secrets.token_urlsafe(16)
        if names is not None and _host_name(request.headers) not in names:
            abort(403, "The server has no such name; call it localhost or 127.0.0.1.")
        if request.method == "POST" and _is_foreign(request.headers):
            abort(403, "Only the server's own page may send it images.")

    @app.after_request
    def harden(response):
        response.headers.update(HEADERS)
        response.headers["Content-Security-Policy"] = POLICY.format(g.nonce)
        return response

    @app.get("/")
    def page():
        return render_template(
            "serve.html", nonce=g.nonce, limits=limits, classes=len(predictor.classes)
        )

    @app.post("/api/segment")
    def segment():
        data = _uploaded(limits)
        _check_header(data, limits)
        has_left = request.environ.get("waitress.client_disconnected", lambda: False)
        labels, seconds = model(data, has_left)
        return jsonify(_answer(labels, seconds, predictor))

    @app.errorhandler(HTTPException)
    def explain(error):
        response = error.get_response()
        response.data = json.dumps({"error": error.description})
        response.content_type = "application/json"
        return response

    @app.errorhandler(BusyError)
    def explain_busy(error):
        return jsonify(error=str(error)), 503, {"Retry-After": math.ceil(model.seconds)}

    @app.errorhandler(InputError)
    def explain_input(error):
        return jsonify(error=str(error)), 422

    @app.errorhandler(MemoryError)
    def explain_memory(_):
        return jsonify(error="The image needs more memory than this machine has."), 413

    @app.errorhandler(Exception)
    def explain_failure(error):
        logger.error("%s %s", request.method, request.path, exc_info=error)
        return jsonify(error="The model failed on this image; the server's log says why."), 500

    return app


class InMemoryRequest(Request):
    """A request whose uploads stay in memory; Werkzeug would write large ones to a file."""

    def _get_file_stream(self, *_, **__):
        return BytesIO()


class BusyError(Exception):
    """There is no place for another image, or its turn did not come."""


class SharedModel:
    """A model that several threads share, each waiting for its turn.

    One thread does all the work: Paddle's settings and its operators' threads belong to the thread
    that calls.

    Args:
        predictor: ``Predictor``.
        limits: ``Limits``.

    Attributes:
        seconds: That the last image took.
    """

    def __init__(self, predictor, limits):
        self._predictor, self._limits, self.seconds = predictor, limits, 1.0
        self._places = threading.BoundedSemaphore(1 + limits.waiting)
        self._thread = futures.ThreadPoolExecutor(1, "model")

    def __call__(self, data, has_left):
        """Segment an image.

        Args:
            data: The bytes of its file.
            has_left: Says, when its turn has come, whether nobody waits for it any more.

        Returns:
            Its label map, and the seconds that it took.

        Raises:
            BusyError: Too many are waiting, or this one has waited too long.
            InputError: It is damaged.
        """
        if not self._places.acquire(blocking=False):
            raise BusyError("The server has as many images as it can take.")
        try:
            turn = self._thread.submit(self._segment, data, has_left)
        except RuntimeError as error:
            raise BusyError("The server is stopping.") from error
        turn.add_done_callback(lambda _: self._places.release())
        try:
            return turn.result(self._limits.seconds)
        except futures.TimeoutError as error:
            if turn.cancel():
                raise BusyError("The server is busy with other images.") from error
            return turn.result()  # its turn has come
        except futures.CancelledError as error:
            raise BusyError("The server is stopping.") from error

    def close(self):
        """Take no more images, and give up those that wait."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _segment(self, data, has_left):
        if has_left():
            raise BusyError("Nobody waits for this image.")
        start = time.monotonic()
        image = _decode(data)
        labels = self._predictor(image[:, :, ::-1]).label_map
        self.seconds = time.monotonic() - start
        return labels, self.seconds


def _decode(data):
    """The image as training sees it, if it is whole, of which OpenCV does not tell."""
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as picture:
            picture.load()
    except MemoryError:
        raise
    except Exception as error:  # of damaged files Pillow raises many kinds
        raise InputError(f"The image is damaged: {error}.") from error
    return decode_image(data, "The file")


def _uploaded(limits):
    """The bytes of the image: the field ``image`` of a form, or the request's whole body."""
    if (request.content_length or 0) > limits.megabytes * 1e6:
        abort(413, f"The file is larger than {limits.megabytes:g} MB.")
    if request.mimetype != "multipart/form-data":
        data = request.get_data()
    elif "image" in request.files:
        data = request.files["image"].read()
    else:
        abort(400, "The form has no file called image.")
    return data or abort(400, "The file is empty.")


def _check_header(data, limits):
    """Refuse, before anything is decoded, what is no image and what is too large or too small."""
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
    except Image.DecompressionBombError:
        width = height = math.inf
    except Exception:  # of damaged files Pillow raises many kinds
        abort(415, f"The file is no image; {', '.join(FORMATS[:-1])} and {FORMATS[-1]} are read.")
    if width * height > limits.megapixels * 1e6:
        abort(413, f"The image has more than {limits.megapixels:g} megapixels.")
    if min(width, height) < MIN_IMAGE_SIZE:
        abort(422, f"The image is smaller than {MIN_IMAGE_SIZE} x {MIN_IMAGE_SIZE} pixels.")


def _answer(labels, seconds, predictor):
    counts = np.bincount(labels.ravel())
    found = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist()
    classes = [
        {
            "index": index,
            "name": predictor.classes[index],
            "colour": "#" + bytes(predictor.palette[index]).hex(),
            "share": counts[index] / labels.size,
        }
        for index in found
    ]
    picture = cv2.imencode(".png", labels)[1].tobytes()
    return {
        "width": labels.shape[1],
        "height": labels.shape[0],
        "classes": classes,
        "label_map": base64.b64encode(picture).decode(),
        "seconds": round(seconds, 3),
    }


def _own_names(host):
    """The names of a server that its own machine alone reaches; None if others can, too."""
    try:
        is_local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = host == "localhost"
    return {"localhost", "127.0.0.1", "::1", host} if is_local else None


def _host_name(headers):
    """The name that a browser calls the server; its port may be that of a tunnel."""
    try:
        return urlsplit(f"//{headers.get('Host', '')}").hostname
    except ValueError:
        return None


def _is_foreign(headers):
    """Whether a browser sends this for a page that is not ours; other programs say neither."""
    site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
    if site is not None:
        return site != "same-origin"
    own = (f"{scheme}://{headers.get('Host')}" for scheme in ("http", "https"))
    return origin is not None and origin not in own
