"""Former name of ``masks_from_colors.py``."""

from paddleseg_segformer.cli import main

if __name__ == "__main__":
    main("masks_from_colors")
