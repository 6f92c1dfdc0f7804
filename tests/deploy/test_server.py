"""The server with Flask's test client, with Waitress in a thread, and as ``tools/serve.py``."""

import base64
import http.client
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from served_model import CLASSES, PALETTE, write_model

from paddleseg_segformer.cli import serve
from paddleseg_segformer.data.image_io import ANY_TYPE
from paddleseg_segformer.errors import InputError
from paddleseg_segformer.inference import Prediction, Predictor

pytest.importorskip("flask", reason="Flask is not installed")
pytest.importorskip("waitress", reason="Waitress is not installed")

from paddleseg_segformer.deploy import server

ROOT = Path(__file__).parents[2]
ENDPOINT = "/api/segment"
NOISE = np.random.default_rng(0).integers(0, 255, [48, 64, 3], "uint8")


def encoded(kind="PNG", image=NOISE, **options):
    """An image's file as bytes."""
    file = BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        file, kind, **options
    )
    return file.getvalue()


def bomb(side):
    """A decompression bomb: a PNG of a few kilobytes with ``side`` squared pixels."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    packer, row = zlib.compressobj(9), bytes(side // 8 + 1)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def form(data, disposition="name=image; filename=a.png"):
    """The body of a form with one field."""
    edge = b"--edge\r\nContent-Disposition: form-data; "
    return edge + disposition.encode() + b"\r\n\r\n" + data + b"\r\n--edge--\r\n"


def content_type(body):
    is_form = body.startswith(b"--edge")
    return "multipart/form-data; boundary=edge" if is_form else "image/png"


def label_map(answer):
    image = Image.open(BytesIO(base64.b64decode(answer["label_map"])))
    assert image.mode == "L"
    return np.asarray(image)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def predictor(model_path):
    return Predictor(model_path, device="cpu")


@pytest.fixture(scope="module")
def client(predictor):
    limits = server.Limits(megabytes=1)
    return server.create_app(predictor, limits, {"localhost"}).test_client()


class FakePredictor:
    """A ``Predictor`` that calls ``hook`` and returns ``segment(image)``."""

    classes, palette, channels = CLASSES, np.array(PALETTE, dtype="uint8"), 3
    check_type = ANY_TYPE

    def __init__(self, hook=lambda: None, segment=lambda image: 0 * image[:, :, 0]):
        self.hook, self.segment, self.calls = hook, segment, 0

    def segment_decoded(self, images):
        self.calls += 1
        self.hook()
        return [Prediction(self.segment(x), x, self.classes, self.palette) for x in images]


def test_response_is_the_predictors(client, predictor):
    expected = predictor(NOISE)
    answer = client.post(ENDPOINT, data=encoded()).get_json()
    np.testing.assert_array_equal(label_map(answer), expected.label_map)
    assert (answer["width"], answer["height"]) == (64, 48) and answer["seconds"] > 0
    assert {entry["name"]: entry["share"] for entry in answer["classes"]} == expected.shares()
    for entry in answer["classes"]:
        assert entry["name"] == CLASSES[entry["index"]]
        assert entry["colour"] == "#" + bytes(PALETTE[entry["index"]]).hex()


def test_response_computed_by_hand():
    """Of a model of the greatest channel: half of the rows green, 30% blue, 20% red."""
    image = np.zeros([50, 40, 3], "uint8")
    image[:10, :, 0] = image[10:35, :, 1] = image[35:, :, 2] = 200
    predictor = FakePredictor(segment=lambda image: image.argmax(axis=2).astype("uint8"))
    answer = server.create_app(predictor).test_client().post(ENDPOINT, data=encoded(image=image))
    answer = answer.get_json()
    rows = np.repeat([0, 1, 2], [10, 25, 15])
    np.testing.assert_array_equal(label_map(answer), rows[:, None].repeat(40, axis=1))
    assert (answer["width"], answer["height"]) == (40, 50)
    assert answer["classes"] == [  # the largest first
        {"index": 1, "name": "<b>road</b>", "colour": "#804080", "share": 0.5},
        {"index": 2, "name": "tree & bush", "colour": "#6b8e23", "share": 0.3},
        {"index": 0, "name": "sky", "colour": "#4682b4", "share": 0.2},
    ]


@pytest.mark.parametrize("kind", server.FORMATS)
def test_each_format_is_read_as_in_training(kind, client, predictor, tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6  # rotate by 90 degrees
    data = encoded(kind, **({"exif": exif} if kind in ("JPEG", "PNG") else {}))
    (tmp_path / "image").write_bytes(data)
    answer = client.post(ENDPOINT, data=data).get_json()
    np.testing.assert_array_equal(label_map(answer), predictor(tmp_path / "image").label_map)


def test_form_and_raw_body_have_the_same_response(client):
    bodies = encoded(), form(encoded())
    answers = [
        client.post(ENDPOINT, data=body, content_type=content_type(body)).get_json()
        for body in bodies
    ]
    assert answers[0].pop("seconds") and answers[1].pop("seconds")
    assert answers[0] == answers[1]


TEXT = b"Milk, bread, eggs"


def npy(array):
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


HUGE_ARRAY = npy(NOISE).replace(b"(48, 64, 3), ", b"(9999, 9999),")
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>'
REJECTED = {
    "empty": (b"", 400, "empty"),
    "form without the field": (form(encoded(), "name=photo; filename=a.png"), 400, "called image"),
    "form with text": (form(b"hello", "name=image"), 400, "called image"),
    "empty in a form": (form(b""), 400, "empty"),
    "text": (TEXT, 415, "not an image"),
    "text named .jpg": (
        form(TEXT, "name=image; filename=a.jpg"),
        415,
        "not an image",
    ),
    "SVG": (SVG, 415, "not an image"),
    "another format": (encoded("PPM"), 415, "not an image"),
    "half a header": (encoded()[:20], 422, "cannot be read"),
    "half a PNG": (encoded()[:3000], 422, "damaged"),
    "half a JPEG": (encoded("JPEG")[:1500], 422, "damaged"),
    "half a TIFF": (encoded("TIFF")[:3000], 422, "truncated"),
    "half an array": (npy(NOISE)[:3000], 422, "cannot be read as an image"),
    "four bands": (npy(np.zeros([48, 64, 4], "uint16")), 422, "has 4 bands"),
    "huge array": (HUGE_ARRAY, 413, "more than 25 megapixels"),
    "text array": (npy(np.array([["a", "b"]])), 415, "not an image"),
    "NaN": (npy(np.full([48, 64], np.nan)), 422, "has NaN or infinite values"),
    "tiny": (encoded(image=NOISE[:31]), 422, "smaller than 32"),
    "bomb": (bomb(20000), 413, "more than 25 megapixels"),
    "smaller bomb": (bomb(5001), 413, "more than 25 megapixels"),
    "large file": (bytes(1_000_001), 413, "larger than 1 MB"),
    "large form": (form(bytes(1_000_001)), 413, "larger than 1 MB"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_errors_are_sentences(case, client):
    data, status, words = REJECTED[case]
    answer = client.post(ENDPOINT, data=data, content_type=content_type(data))
    assert answer.status_code == status, answer.text
    assert list(answer.get_json()) == ["error"] and words in answer.get_json()["error"]
    assert "Traceback" not in answer.text and answer.get_json()["error"].endswith(".")


def test_an_image_may_be_as_large_as_the_limits_and_as_small_as_the_model_accepts():
    images = {size: encoded(image=NOISE[: size[0], : size[1]]) for size in [(48, 64), (32, 32)]}
    for size, data in images.items():
        for pixels, bytes_, status in ((0, 0, 200), (-1, 0, 413), (0, -1, 413)):
            limits = server.Limits((len(data) + bytes_) / 1e6, (size[0] * size[1] + pixels) / 1e6)
            client = server.create_app(FakePredictor(), limits).test_client()
            assert client.post(ENDPOINT, data=data).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:9000"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"}, 403),
        ({"Origin": "http://localhost"}, 200),
        ({"Origin": "http://localhost:9000"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_cross_origin_requests_are_rejected(headers, status, client):
    answer = client.post(ENDPOINT, data=encoded(), headers=headers)
    assert answer.status_code == status, answer.text
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.1.1", "::1"])
def test_a_local_server_has_local_names_only(host):
    """So that a foreign name that resolves to this machine is refused."""
    assert server._local_names(host) == {"localhost", "127.0.0.1", "::1", host}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "10.0.0.1", "example.org"])
def test_a_server_that_others_can_reach_has_any_name(host):
    assert server._local_names(host) is None
    client = server.create_app(FakePredictor(), names=None).test_client()
    answer = client.post(ENDPOINT, data=encoded(), headers={"Host": "segmentation.example"})
    assert answer.status_code == 200


def test_page_allows_only_its_own_script(client):
    answers = [client.get("/") for _ in range(2)]
    policies = [answer.headers["Content-Security-Policy"] for answer in answers]
    nonces = [re.search(r"script-src 'nonce-([\w-]+)'", policy)[1] for policy in policies]
    assert nonces[0] != nonces[1]
    for answer, nonce, policy in zip(answers, nonces, policies):
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy and "form-action 'none'" in policy
        assert f'<script nonce="{nonce}">' in answer.text
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)| on\w+=| style=", answer.text)
        assert "has 5 classes" in answer.text and "up to 1 MB" in answer.text
    for path in ("/", "/nowhere", ENDPOINT):
        headers = client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert (
            headers["Cache-Control"] == "no-store" and "no-referrer" in headers["Referrer-Policy"]
        )
    assert (
        client.get(ENDPOINT).status_code == 405 and "POST" in client.get(ENDPOINT).headers["Allow"]
    )


def test_errors_of_the_model_hide_the_traceback():
    errors = iter([RuntimeError("secret"), MemoryError("secret")])

    def fail():
        raise next(errors)

    client = server.create_app(FakePredictor(fail)).test_client()
    for status in (500, 413):
        answer = client.post(ENDPOINT, data=encoded())
        assert answer.status_code == status and "secret" not in answer.text
        assert answer.get_json()["error"].endswith(".")
    client.application.extensions["model"]._predictor.hook = lambda: None
    assert client.post(ENDPOINT, data=encoded()).status_code == 200


class Held:
    """An application that segments its first image until ``release`` is set."""

    def __init__(self, **limits):
        self.started, self.release = threading.Event(), threading.Event()
        self.predictor = FakePredictor(self._hold)
        self.app = server.create_app(self.predictor, server.Limits(**limits))
        self.model = self.app.extensions["model"]
        self._pool = ThreadPoolExecutor(8)
        self.first = self.send()
        assert self.started.wait(60)

    def _hold(self):
        self.started.set()
        assert self.release.wait(300)

    def send(self, **environ):
        """Send an image from another thread; returns a future of the response."""
        client = self.app.test_client()
        return self._pool.submit(client.post, ENDPOINT, data=encoded(), environ_base=environ)

    def wait_for_slots(self, count):
        """Wait until the queue has this many free slots."""
        deadline = time.monotonic() + 60
        while self.model._slots._value != count and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.model._slots._value == count


def assert_busy(answer, words, retry_after="1"):
    assert answer.status_code == 503 and words in answer.get_json()["error"]
    assert answer.headers["Retry-After"] == retry_after


def test_a_full_queue_rejects_immediately():
    held = Held(waiting=2)
    waiting = [held.send() for _ in range(2)]
    held.wait_for_slots(0)
    held.model._seconds = 6.3  # of the last image
    for _ in range(3):
        assert_busy(held.send().result(60), "queue is full", retry_after="7")
    held.release.set()
    assert [sent.result(60).status_code for sent in (held.first, *waiting)] == [200] * 3
    held.wait_for_slots(3)
    assert held.send().result(60).status_code == 200


def test_the_time_limit_is_for_queued_images_only():
    held = Held(seconds=0.5)
    assert_busy(held.send().result(60), "busy with other images")
    held.release.set()
    assert held.first.result(60).status_code == 200
    assert held.predictor.calls == 1


def test_images_of_disconnected_clients_are_skipped():
    held = Held()
    gone = held.send(**{"waitress.client_disconnected": lambda: True})
    held.wait_for_slots(7)
    held.release.set()
    assert gone.result(60).status_code == 503 and held.predictor.calls == 1


def test_stopping_responds_to_all_requests():
    held = Held()
    waiting = held.send()
    held.wait_for_slots(7)
    held.model.close()
    assert_busy(waiting.result(60), "stopping")
    assert_busy(held.send().result(60), "stopping")
    held.release.set()
    assert held.first.result(60).status_code == 200


@contextmanager
def serving(predictor):
    """Run a server in a thread; yields its port."""
    limits = server.Limits(megabytes=4)
    app = server.create_app(predictor, limits, {"localhost"})
    sockets = {}
    listening = server._listen(app, "127.0.0.1", 0, limits, sockets)
    thread = threading.Thread(target=listening.run)
    thread.start()
    try:
        yield int(listening.effective_port)
    finally:
        listening.asyncore.close_all(sockets)
        listening.close()
        thread.join(10)


def post(port, data):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Host": "localhost", "Content-Type": content_type(data)}
    connection.request("POST", ENDPOINT, data, headers)
    answer = connection.getresponse()
    body = json.loads(answer.read())
    connection.close()
    return answer.status, body


@pytest.mark.integration
def test_nothing_is_written_to_disk(monkeypatch):
    """Uploads and responses above the sizes where Werkzeug and Waitress use temporary files."""
    opened = []
    for name in ("TemporaryFile", "NamedTemporaryFile", "mkstemp"):
        open_file = getattr(tempfile, name)
        monkeypatch.setattr(
            tempfile, name, lambda *a, _open=open_file, **k: opened.append(a) or _open(*a, **k)
        )
    image = np.random.default_rng(0).integers(0, 255, [1700, 2000], "uint8")
    data = encoded(image=image)
    assert 3e6 < len(data) < 4e6
    with serving(FakePredictor(segment=lambda image: image[:, :, 0] % 5)) as port:
        for body in (data, form(data)):
            status, answer = post(port, body)
            assert status == 200 and len(answer["label_map"]) > 1.1e6
            np.testing.assert_array_equal(label_map(answer), image % 5)
    assert not opened


def test_a_large_upload_gets_the_error():
    with serving(FakePredictor()) as port:
        assert post(port, bytes(6_000_000)) == (413, {"error": "The file is larger than 4 MB."})


def test_fifty_parallel_requests_succeed_or_are_rejected(predictor):
    with serving(predictor) as port, ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: post(port, encoded()), range(50)))
        expected = post(port, encoded())[1]["label_map"]
    statuses = [status for status, _ in answers]
    assert set(statuses) <= {200, 503} and statuses.count(200) >= 9
    for status, answer in answers:
        assert answer["label_map"] == expected if status == 200 else answer["error"]


START = f"POST {ENDPOINT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 7900000\r\n\r\n".encode()


def is_open(connection):
    """Whether the server has not closed a connection, whose response is not complete."""
    connection.settimeout(0.01)
    try:
        return connection.recv(1) != b""
    except socket.timeout:
        return True
    except ConnectionError:
        return False


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


def test_slow_clients_do_not_lock_out_others():
    """The longest unfinished request gives way to a new connection."""
    with serving(FakePredictor()) as port, ExitStack() as stack:
        slow = []
        for _ in range(server.CONNECTIONS + 8):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.sendall(START + b"x")
            slow.append(connection)
        assert post(port, encoded())[0] == 200
        wait_until(lambda: [is_open(x) for x in slow] == 9 * [False] + 63 * [True])


def test_unfinished_uploads_take_bounded_memory():
    """Four times the size of an upload, 4 MB, of which these have twice the size."""
    with serving(FakePredictor()) as port, ExitStack() as stack:
        uploads = []
        for _ in range(20):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            with suppress(ConnectionError):
                connection.sendall(START + bytes(7_899_999))
            uploads.append(connection)
        wait_until(lambda: sum(map(is_open, uploads)) <= 2)
        assert post(port, encoded())[0] == 200


@pytest.mark.integration
@pytest.mark.parametrize("pause", [0.1, 10])
def test_a_request_has_a_time_limit_that_no_byte_renews(pause, monkeypatch):
    monkeypatch.setattr(server, "REQUEST_SECONDS", 1)
    monkeypatch.setattr(server, "CLEANUP_SECONDS", 1)
    with serving(FakePredictor()) as port, socket.create_connection(("127.0.0.1", port)) as slow:
        start = sent = time.monotonic()
        slow.sendall(START)
        while is_open(slow) and time.monotonic() < start + 10:
            if time.monotonic() > sent + pause:
                slow.sendall(b"x")
                sent = time.monotonic()
        assert 1 < time.monotonic() - start < 5


@pytest.mark.integration
def test_a_response_has_its_own_time_limit(monkeypatch):
    """Which begins when it is sent: processing takes longer than the limit here."""
    monkeypatch.setattr(server, "REQUEST_SECONDS", 1)
    monkeypatch.setattr(server, "CLEANUP_SECONDS", 1)
    monkeypatch.setattr(server, "_response", lambda *_: {"label_map": 12_000_000 * "x"})
    delays = [2.2, 0]
    with serving(FakePredictor(lambda: time.sleep(delays.pop(0)))) as port:
        assert len(post(port, encoded())[1]["label_map"]) == 12_000_000
        with socket.create_connection(("127.0.0.1", port)) as slow:
            data = encoded()
            slow.sendall(START.replace(b"7900000", str(len(data)).encode()) + data)
            time.sleep(2.5)
            received = 0
            with suppress(ConnectionError):
                while part := slow.recv(1 << 20):
                    received += len(part)
            assert received < 12_000_000


def tool(model_path, *arguments):
    return subprocess.Popen(
        [sys.executable, "tools/serve.py", "--model_path", model_path, "--device", "cpu"]
        + list(map(str, arguments)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


@pytest.mark.integration
def test_tool_serves_until_sigterm(model_path):
    process = tool(model_path, "--port", 0, "--max_megapixels", 0.01)
    port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())[1])
    assert post(port, encoded())[0] == 200
    assert post(port, encoded(image=Image.new("RGB", (101, 100))))[0] == 413
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert "Traceback" not in process.stderr.read()


LARGE = """
from types import SimpleNamespace
from paddleseg_segformer.deploy import server
from paddleseg_segformer.log import setup_logging
setup_logging()
server._response = lambda *_: {"label_map": 12_000_000 * "x"}
def predict(images):
    print("started", flush=True)
    return [None]
options = {"check_type": lambda *_: None, "classes": [], "channels": 3}
server.serve(SimpleNamespace(segment_decoded=predict, **options), port=0)
"""


@pytest.mark.integration
def test_stopping_sends_pending_responses():
    """One that exceeds the socket buffers, so that the rest is sent while the client reads."""
    process = subprocess.Popen(
        [sys.executable, "-c", LARGE], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    port = int(re.search(r":(\d+)/", process.stdout.readline())[1])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", ENDPOINT, encoded(), {"Content-Type": "image/png"})
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGTERM)
    assert len(json.loads(connection.getresponse().read())["label_map"]) == 12_000_000
    connection.close()
    assert process.wait(60) == 0


def test_a_missing_package_is_named(model_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["serve", "--model_path", str(model_path), "--device", "cpu"])
    monkeypatch.delitem(sys.modules, "paddleseg_segformer.deploy.server")
    monkeypatch.delattr(sys.modules["paddleseg_segformer.deploy"], "server")
    monkeypatch.setitem(sys.modules, "waitress", None)  # makes its import fail
    expected = r"^waitress is not installed; pip install 'paddleseg-segformer\[serve\]'\.$"
    with pytest.raises(InputError, match=expected):
        serve.main()


def test_a_port_in_use_is_named():
    with serving(FakePredictor()) as port, pytest.raises(InputError) as caught:
        server.serve(FakePredictor(), port=port)
    assert f"--port {port}: cannot be used (Address already in use)." in str(caught.value)
