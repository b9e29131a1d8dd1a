"""Amounts of memory and disk in words."""


def format_bytes(byte_count: int) -> str:
    """Write an amount of memory or disk: `64 kB`, `28 MB`, `1.2 GB`."""
    if byte_count < 10**6:
        return f"{byte_count / 1e3:.0f} kB"
    return f"{byte_count / 1e6:,.0f} MB" if byte_count < 10**9 else f"{byte_count / 1e9:,.1f} GB"
