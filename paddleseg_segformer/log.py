"""Logging and progress bars."""

import logging
import os
import sys
import time
from contextlib import contextmanager
from datetime import timedelta

import paddleseg.utils.logger
from paddle.distributed import get_rank
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger("paddleseg_segformer")
MAX_SECONDS = timedelta.max.days * 86400


def setup_logging():
    """Log to standard output, from the first process alone."""
    logging.raiseExceptions = False  # no traceback for each line on a closed pipe or a full disk
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        logging.Formatter("%(asctime)s [%(levelname)s] %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    )
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if get_rank() == 0 else logging.ERROR)
    paddleseg.utils.logger.log_level = 1  # warnings; its information fills pages


def progress(iterable, total, description, unit="it", size=lambda item: 1):
    """Iterate with a progress bar on a terminal, else with a log line every 30 seconds.

    Args:
        iterable: The items.
        total: The sum of their sizes.
        description: What is done.
        unit: Of the sizes.
        size: Function that returns the size of an item.
    """
    visible = _is_terminal(sys.stderr) and get_rank() == 0
    options = {"unit": unit, "unit_scale": total > 10**6, "leave": False, "disable": not visible}
    start = last = time.monotonic()
    done = 0
    with tqdm(desc=description, total=total, **options) as bar:
        for item in iterable:
            yield item
            done += size(item)
            bar.update(size(item))
            now = time.monotonic()
            if not _is_terminal(sys.stderr) and now - last > 30:
                last = now
                eta = eta_text((now - start) / done * (total - done))
                logger.info("%s: %d/%d | ETA %s", description, done, total, eta)


@contextmanager
def training_bar(iters, done):
    """Context manager of a ``tqdm`` bar below the log; only on a terminal, in the first process."""
    streams = (sys.stdout, sys.stderr)
    visible = all(_is_terminal(s) and os.get_terminal_size(s.fileno()).columns for s in streams)
    disable = get_rank() != 0 or not visible
    bar = tqdm(desc="train", total=iters, initial=done, disable=disable, dynamic_ncols=True)
    with logging_redirect_tqdm([logger]), bar:
        yield bar


@contextmanager
def log_write_error(name):
    """Log an OSError, such as a full disk, instead of ending the run."""
    try:
        yield
    except OSError as error:
        logger.warning("%s cannot be written (%s)", name, error.strerror)


def _is_terminal(stream):
    """Whether the stream is a terminal; in a daemon it may be closed, which is None."""
    return stream is not None and stream.isatty()


def eta_text(seconds):
    """A duration as text, such as ``1 day, 2:03:04``; at most Python's longest."""
    return str(timedelta(seconds=round(min(seconds, MAX_SECONDS))))
