"""``python -m paddleseg_segformer train …``: the ``segformer`` command."""

from .cli import main

if __name__ == "__main__":
    main()
