"""Run PaddleSeg's own scripts with this package's components and patches for Paddle 3.

In an unmodified checkout of PaddleSeg::

    python -m paddleseg_segformer.compat_run tools/train.py --config my.yml

or with ``import paddleseg_segformer.compat_run`` as the first line of a script.
"""

import os
import runpy
import sys

from .compat import patch_train_loop

patch_train_loop()


def main():
    if len(sys.argv) < 2:
        sys.exit("usage: python -m paddleseg_segformer.compat_run SCRIPT [ARGUMENTS]")
    del sys.argv[0]
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))  # as python SCRIPT does
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
