"""Fetching weights from a URL, once."""

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

from paddleseg.utils import seg_env
from tqdm import tqdm

from ..errors import InputError

TRIES, TIMEOUT = 3, 30


def is_url(source):
    """Whether ``source`` is an http or https address."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def download(url):
    """Fetch a file into PaddleSeg's cache of pretrained models, unless it is there.

    Returns:
        Its path. A file of that name in the cache is whole.

    Raises:
        InputError: It could not be fetched.
    """
    # Many files are called model.pdparams: a folder for each address keeps them apart.
    name = re.sub(r"[^\w.-]", "_", url.split("?")[0].split("#")[0].rstrip("/").split("/")[-1])
    folder = Path(seg_env.PRETRAINED_MODEL_HOME, hashlib.sha256(url.encode()).hexdigest()[:16])
    target = folder / name
    if target.is_file():
        return target
    partial = folder / f"{name}.{os.getpid()}.partial"  # several processes may fetch
    for attempt in range(TRIES):
        time.sleep(attempt)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _fetch(url, partial)
            partial.replace(target)
            return target
        except (OSError, http.client.HTTPException, ValueError) as error:
            failure = error
            if isinstance(error, (http.client.InvalidURL, ValueError)) or (
                isinstance(error, urllib.error.HTTPError) and error.code < 500
            ):
                break
        finally:
            if partial.exists():
                partial.unlink()
    raise InputError(
        f"{url}: could not be fetched ({failure}); fetch it elsewhere and set the config's "
        "pretrained key to the file, such as --opts model.backbone.pretrained=FILE, or to null to "
        "start from random weights."
    ) from failure


def _fetch(url, path):
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response, open(path, "wb") as file:
        size = int(response.headers.get("Content-Length") or 0)
        with tqdm(total=size or None, desc=path.stem, unit="B", unit_scale=True) as bar:
            while chunk := response.read(1 << 20):
                if file.tell() == 0 and chunk.lstrip()[:1] == b"<":
                    raise ValueError("the answer is a web page")
                file.write(chunk)
                bar.update(len(chunk))
        if size and file.tell() != size:
            raise OSError(f"the connection ended after {file.tell()} of {size} bytes")
