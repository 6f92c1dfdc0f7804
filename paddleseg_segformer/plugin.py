"""Former name of ``compat_run``."""

import runpy

from . import compat_run

if __name__ == "__main__":
    runpy.run_module(compat_run.__name__, run_name="__main__")
