"""Memory of the process that trains."""

from __future__ import annotations

import ctypes
import platform

__all__ = ['keep_freed_memory']


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees, for the tensors of the next step; without glibc nothing happens.

    glibc gives memory of tensors above 32 MB back to the system at once, which clears it, page by page, when the next
    step asks for it anew: with thousands of classes that took most of the term's time.
    """
    if platform.libc_ver()[0] == 'glibc':
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: nothing is mapped on its own
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: what the heap keeps, in bytes
