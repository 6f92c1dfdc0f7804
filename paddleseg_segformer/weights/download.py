"""Download weights into PaddleSeg's cache."""

import hashlib
import http.client
import re
import time
import urllib.request
from pathlib import Path

from paddleseg.utils import seg_env
from tqdm import tqdm

from ..errors import InputError
from ..fs import atomic_path

MAX_ATTEMPTS = 3
TIMEOUT = 30  # seconds without data


def is_url(source):
    """Whether ``source`` is an http or https URL."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def download(url):
    """Download a file into PaddleSeg's cache of pretrained models, unless it is there: its path.

    Raises:
        InputError: It cannot be downloaded.
    """
    # Many files are called model.pdparams, so each URL gets its own folder.
    name = re.sub(r"[^\w.-]", "_", url.split("?")[0].split("#")[0].rstrip("/").split("/")[-1])
    folder = Path(seg_env.PRETRAINED_MODEL_HOME, hashlib.sha256(url.encode()).hexdigest()[:16])
    target = folder / name
    if target.is_file():
        return target
    for attempt in range(MAX_ATTEMPTS):
        time.sleep(attempt)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(target) as temporary:
                _fetch(url, temporary)
            return target
        except (OSError, http.client.HTTPException, ValueError) as error:
            failure = error
            status = getattr(error, "code", 500)  # of an HTTPError
            if isinstance(error, (http.client.InvalidURL, ValueError)) or status < 500:
                break
    raise InputError(
        f"{url}: cannot be downloaded ({failure}); download it elsewhere and set the config's "
        "pretrained key to the file, such as --opts model.backbone.pretrained=FILE, or to null to "
        "start from random weights."
    ) from failure


def _fetch(url, path):
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response, open(path, "wb") as file:
        size = int(response.headers.get("Content-Length") or 0)
        with tqdm(total=size or None, desc="download", unit="B", unit_scale=True) as bar:
            while chunk := response.read(1 << 20):
                if file.tell() == 0 and chunk.lstrip()[:1] == b"<":
                    raise ValueError("the response is a web page")
                file.write(chunk)
                bar.update(len(chunk))
        if size and file.tell() != size:
            raise OSError(f"the connection ended after {file.tell()} of {size} bytes")
