"""Former name of ``compat_run``, which still works."""

from .compat_run import main

if __name__ == "__main__":
    main()
