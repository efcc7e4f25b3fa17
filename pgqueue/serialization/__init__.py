"""Values to JSON text that PostgreSQL accepts, and back.

What JSON cannot say is a single-key object whose key is one of a closed set of tags, `{"$uuid": "..."}`.
A text is only ever data: nothing is imported, called or constructed because of a name in it.
"""

from pgqueue.serialization.limits import MAX_BYTES, MAX_CAUSES, MAX_DEPTH, MAX_DIGITS
from pgqueue.serialization.reading import decode
from pgqueue.serialization.reports import decode_error, encode_error
from pgqueue.serialization.writing import encode

__all__ = [
    "MAX_BYTES",
    "MAX_CAUSES",
    "MAX_DEPTH",
    "MAX_DIGITS",
    "decode",
    "decode_error",
    "encode",
    "encode_error",
]
