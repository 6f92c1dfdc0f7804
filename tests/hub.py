"""The cache of huggingface_hub, and an HTTP server that answers as huggingface.co does."""

import hashlib
import http.server
import json
import threading

from checkpoint_fixtures import FORMATS
from safetensors.numpy import save

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


def model_files(model, classes, name="model.safetensors"):
    """The files of a Hugging Face repository with the weights of a SegFormer: bytes by name."""
    convert, _ = FORMATS["huggingface"]
    state = convert({k: v.numpy() for k, v in model.state_dict().items()}, len(classes))
    labels = {str(index): label for index, label in enumerate(classes)}
    config = json.dumps({"model_type": "segformer", "id2label": labels})
    return {name: save(state), "config.json": config.encode()}


def write_cache(cache, name, files, revision="main"):
    """Write a repository's files as huggingface_hub stores them; returns the snapshot's folder."""
    root = cache / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMITS[revision]
    for folder in (root / "blobs", root / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "refs" / revision).write_text(COMMITS[revision])
    for file, content in files.items():
        digest = hashlib.sha256(content).hexdigest()
        (root / "blobs" / digest).write_bytes(content)
        (snapshot / file).symlink_to(f"../../blobs/{digest}")
    return snapshot


class HubServer:
    """Serves repositories as huggingface.co does.

    Attributes:
        repositories: Files by name of the repository, or an error code.
        requests: Method and path of each request.
        url: The value for HF_ENDPOINT.
    """

    def __init__(self, repositories):
        self.repositories, self.requests = repositories, []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=[0.01], daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.respond()

    def do_GET(self):
        self.respond()

    def respond(self):
        self.hub.requests.append(f"{self.command} {self.path}")
        name, _, rest = self.path[1:].partition("/resolve/")
        revision, _, file = rest.partition("/")
        files = self.hub.repositories.get(name, "RepoNotFound")
        commit = COMMITS.get(revision, revision)
        if isinstance(files, dict) and commit not in COMMITS.values():
            files = "RevisionNotFound"
        elif isinstance(files, dict) and file not in files:
            files = "EntryNotFound"
        if isinstance(files, str):
            self.send_response(403 if files == "GatedRepo" else 404)
            self.send_header("X-Error-Code", files)
            content = b""
        else:
            self.send_response(200)
            content = files[file]
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass
