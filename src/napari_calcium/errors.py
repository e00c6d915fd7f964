"""The one kind of error that is meant to be read by the person at the screen."""

from __future__ import annotations

import zipfile
import zlib

__all__ = ["UNREADABLE", "InputError"]

UNREADABLE = (
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What libraries raise that read a file of another kind, or a damaged one; some raise more."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one sentence with the remedy.

    The command line prints it to stderr and exits with status 2; the window shows it as a
    notification. Every other exception is a bug and keeps its traceback.

    Examples
    --------
    >>> raise InputError("frame_rate is 0 Hz; give the frames recorded per second")
    Traceback (most recent call last):
    ...
    napari_calcium.errors.InputError: frame_rate is 0 Hz; give the frames recorded per second
    """
