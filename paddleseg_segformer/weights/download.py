"""Download weights: files into PaddleSeg's cache, repositories of Hugging Face into its own."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import time
import urllib.request
from pathlib import Path

from paddleseg.utils import seg_env
from tqdm import tqdm

from ..errors import InputError, one_line
from ..fs import atomic_path

MAX_ATTEMPTS = 3
TIMEOUT = 30  # seconds without data

# Weights in a Hugging Face repository or folder, the preferred ones first.
HUGGINGFACE_FILES = ("model.safetensors", "pytorch_model.bin")

REPOSITORY = re.compile(r"([a-z0-9][\w.-]*/[a-z0-9][\w.-]*)(?:@(\S+))?", re.ASCII | re.IGNORECASE)
# A mistyped path with one of these endings is reported without looking for a repository.
FILE_ENDINGS = (".pdparams", ".safetensors", ".pth", ".pt", ".bin", ".gz", ".onnx", ".yaml")
FILE_ENDINGS += (".yml", ".json", ".pdmodel", ".pdiparams")


def local_path(source: str) -> Path:
    """The path of weights, which are downloaded if necessary.

    Args:
        source: A path, an http(s) URL, or the name of a Hugging Face repository, optionally
            followed by ``@`` and a branch, tag or commit. If a file or folder has that name, it is
            used.

    Raises:
        InputError: The weights cannot be downloaded.
    """
    if source.lower().startswith(("http://", "https://")):
        return download(source)
    match = REPOSITORY.fullmatch(source)
    if match and not source.endswith(FILE_ENDINGS) and not os.path.lexists(source):
        return _download_repository(source, *match.groups())
    return Path(source)


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


def _download_repository(source, name, revision):
    """Download the weights of a Hugging Face repository, and its config.json into their folder."""
    try:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache, utils
    except ImportError as error:
        raise InputError(
            f"{source}: no such file or folder; to download the Hugging Face repository of that "
            "name, pip install huggingface_hub."
        ) from error
    preferred, other = HUGGINGFACE_FILES
    try:
        try:
            path = hf_hub_download(name, preferred, revision=revision)
        except utils.LocalEntryNotFoundError:  # no network: requests may be repeated for a minute
            path = try_to_load_from_cache(name, other, revision=revision)
            if not isinstance(path, str):
                raise
        except utils.EntryNotFoundError:
            path = hf_hub_download(name, other, revision=revision)
        path = Path(path)
        with contextlib.suppress(utils.EntryNotFoundError):
            # The folder's name is the commit, for which a file in the cache is not requested again.
            hf_hub_download(name, "config.json", revision=path.parent.name)
        return path
    except utils.HFValidationError:
        return Path(source)
    except utils.GatedRepoError as error:
        reason, failure = "is gated", error
        advice = f"accept its terms on https://huggingface.co/{name}, and set HF_TOKEN"
    except utils.RepositoryNotFoundError as error:
        reason, failure = "no such file or folder, and no such repository on Hugging Face", error
        advice = "correct the name, or set HF_TOKEN if the repository is private"
    except utils.RevisionNotFoundError as error:
        reason, failure = f"the Hugging Face repository has no revision {revision}", error
        advice = "name a branch, tag or commit of it"
    except utils.LocalEntryNotFoundError as error:
        cause = one_line(error.__cause__ or error).rstrip(".")
        reason = f"no such file or folder, and Hugging Face cannot be reached ({cause})"
        advice, failure = "correct the name, or connect to the internet", error
    except utils.EntryNotFoundError as error:
        reason = f"the Hugging Face repository has no {preferred} and no {other}"
        advice, failure = "name another one", error
    except Exception as error:  # of the HTTP client, or a full disk
        reason = f"cannot be downloaded from Hugging Face ({one_line(error)})"
        advice, failure = "repeat the command to continue the download", error
    raise InputError(f"{source}: {reason}; {advice}.") from failure
