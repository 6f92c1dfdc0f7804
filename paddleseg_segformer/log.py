"""What a run tells while it lasts: log lines, progress."""

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


def setup_logging():
    """Log to standard output, from the first process alone; nobody need read it."""
    logging.raiseExceptions = False  # else each line to a closed pipe or full disk is a traceback
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        logging.Formatter("%(asctime)s [%(levelname)s] %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    )
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if get_rank() == 0 else logging.ERROR)
    paddleseg.utils.logger.log_level = 1  # its warnings; its information fills pages


def progress(iterable, total, description):
    """Iterate, with a bar on a terminal and otherwise a log line about every half minute."""
    if _is_terminal(sys.stderr):
        yield from tqdm(iterable, description, total, disable=get_rank() != 0, leave=False)
        return
    start = last = time.monotonic()
    for done, item in enumerate(iterable, 1):
        yield item
        now = time.monotonic()
        if now - last > 30:
            last = now
            eta = eta_text((now - start) / done * (total - done))
            logger.info("%s: %d/%d | ETA %s", description, done, total, eta)


@contextmanager
def training_bar(iters, done):
    """Within, a bar below the log: on a terminal alone, of the first process; else disabled.

    Args:
        iters: Where it ends.
        done: Where it begins.
    """
    streams = (sys.stdout, sys.stderr)
    seen = all(_is_terminal(s) and os.get_terminal_size(s.fileno()).columns for s in streams)
    hidden = get_rank() != 0 or not seen
    bar = tqdm(desc="train", total=iters, initial=done, disable=hidden, dynamic_ncols=True)
    with logging_redirect_tqdm([logger]), bar:
        yield bar


def _is_terminal(stream):
    """Whether somebody sees it; there is none where a daemon's starter has closed it."""
    return stream is not None and stream.isatty()


def eta_text(seconds):
    """Hours, minutes and seconds, such as ``1 day, 2:03:04``."""
    return str(timedelta(seconds=round(seconds)))
