"""Arrays of a number for each row, in files where they are large, so that a process need not hold them in memory."""

import logging
import tempfile
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

LEAST_MAPPED_BYTES = 1 << 20  # smaller arrays stay in memory

logger = logging.getLogger(__name__)
Number = TypeVar("Number", bound=np.generic)


def map_large_array(numbers: NDArray[Number]) -> NDArray[Number]:
    """Return an array of the same numbers; a large one lies in a file, of which the system keeps in memory what it can.

    The file is in the system's folder for temporary files, has no name there, and is gone with the array. Where it
    cannot be written, the array stays in memory. Changes of the array are not written to the file.

    Args:
        numbers: of any shape, not objects.
    """
    if numbers.nbytes < LEAST_MAPPED_BYTES:
        return numbers
    try:
        with tempfile.TemporaryFile() as file:
            file.write(np.ascontiguousarray(numbers).data)
            file.flush()
            mapped: NDArray[Any] = np.memmap(file, numbers.dtype, "c", shape=numbers.shape)
    except OSError as error:
        logger.info("an array of %d bytes stays in memory: %s", numbers.nbytes, error)
        return numbers
    return np.asarray(mapped)
