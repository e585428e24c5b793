"""How commands write large numbers: of parameters and of bytes."""


def count(number: int) -> str:
    """A number of parameters: 46.7 B, 3.94 M, 512."""
    for unit, name in ((10**9, "B"), (10**6, "M")):
        if number >= unit:
            return f"{number / unit:.{3 - len(str(number // unit)) if number < 1000 * unit else 0}f} {name}"
    return f"{number:,}"


def size(nbytes: int) -> str:
    """Bytes in powers of ten: 93.4 GB, 7.87 MB, 512 bytes."""
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.3g} {name}"
    return f"{nbytes} bytes"
