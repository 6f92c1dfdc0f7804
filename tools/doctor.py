"""``segformer doctor``, from a checkout."""

from paddleseg_segformer.cli import main

if __name__ == "__main__":
    main("doctor")
