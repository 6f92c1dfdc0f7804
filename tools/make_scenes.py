"""``segformer make_scenes``, from a checkout."""

from paddleseg_segformer.cli import main

if __name__ == "__main__":
    main("make_scenes")
