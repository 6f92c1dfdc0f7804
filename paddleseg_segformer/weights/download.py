"""Fetching weights from a URL, once."""

import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlparse

from paddleseg.utils import seg_env
from tqdm import tqdm

from ..errors import InputError

TRIES, TIMEOUT = 3, 30


def is_url(source):
    """Whether ``source`` is an http or https address."""
    return isinstance(source, str) and urlparse(source).scheme in ("http", "https")


def download(url):
    """Fetch a file into PaddleSeg's cache of pretrained models, unless it is there.

    Returns:
        Its path. A file of that name in the cache is whole.

    Raises:
        InputError: It could not be fetched.
    """
    # The last folder tells apart the many files called model.pdparams.
    *_, folder, name = ("", *unquote(urlparse(url).path).strip("/").split("/"))
    target = Path(seg_env.PRETRAINED_MODEL_HOME, folder, name)
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{name}.{os.getpid()}.partial")  # several processes may fetch
    for attempt in range(TRIES):
        try:
            _fetch(url, partial)
            partial.replace(target)
            return target
        except (OSError, urllib.error.URLError) as error:
            failure = error
            time.sleep(attempt)
        finally:
            partial.unlink(missing_ok=True)
    raise InputError(
        f"{url}: could not be fetched ({failure}); fetch it elsewhere and set the config's "
        "pretrained key to the file, such as --opts model.backbone.pretrained=FILE, or to null to "
        "start from random weights."
    ) from failure


def _fetch(url, path):
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response, open(path, "wb") as file:
        size = int(response.headers.get("Content-Length") or 0)
        with tqdm(total=size or None, desc=path.name, unit="B", unit_scale=True) as bar:
            while chunk := response.read(1 << 20):
                file.write(chunk)
                bar.update(len(chunk))
        if size and file.tell() != size:
            raise OSError(f"the connection ended after {file.tell()} of {size} bytes")
