"""Independent random streams from one seed."""

import hashlib

import numpy as np


def derive_seed(*name_parts: object) -> int:
    """Derive a 63-bit seed that depends on every part and on nothing else.

    Streams named this way (`derive_seed(seed, "adapter", member)`) stay the same however many other
    streams exist, which is what makes member m independent of the ensemble's size.
    """
    joined_parts = "\x1f".join(str(name_part) for name_part in name_parts)
    return int.from_bytes(hashlib.sha256(joined_parts.encode()).digest()[:8], "big") >> 1


def numpy_rng(*name_parts: object) -> np.random.Generator:
    """Make a NumPy generator for the stream named by `parts`."""
    return np.random.default_rng(derive_seed(*name_parts))
