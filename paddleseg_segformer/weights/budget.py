"""The bound on what reading a checkpoint takes."""

from ..errors import InputError

UNPACKED_FACTOR = 10  # of an archive's size; weights hardly compress


class Budget:
    """What reading a file may take: a multiple of its size, and a constant for small files.

    The bytes made for tensors are at most 8 times the size, and 1 MiB: a checkpoint of bfloat16 in
    PyTorch's format needs 5 times. Operations, which take up to about 300 bytes and 5 microseconds
    each, are at most one for 16 bytes of the file, and 500,000: checkpoints have one for several
    hundred bytes.

    Args:
        size: Size of the file, in bytes.
    """

    def __init__(self, size):
        self._bytes = 8 * size + (1 << 20)
        self._operations = size // 16 + 500_000

    def charge(self, operations=0, size=0):
        """Subtract operations, and a size in bytes, before they are done and made.

        Raises:
            InputError: The budget is exceeded.
        """
        self._operations -= operations
        self._bytes -= size
        if min(self._operations, self._bytes) < 0:
            raise InputError(
                "would take far more memory or time than its size calls for; download it again."
            )
