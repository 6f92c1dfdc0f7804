"""PaddleSeg's own scripts with this library's components, and mended for Paddle 3.

With nothing changed in a checkout of PaddleSeg::

    python -m paddleseg_segformer.compat_run tools/train.py --config my.yml

or with ``import paddleseg_segformer.compat_run`` as the first line of a script.
"""

import os
import runpy
import sys

from .compat import patch_train_loop

patch_train_loop()

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: python -m {__spec__.name} SCRIPT [ARGUMENTS]")
    del sys.argv[0]
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))  # as Python itself does
    runpy.run_path(sys.argv[0], run_name="__main__")
