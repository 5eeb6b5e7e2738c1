"""The seal at the end of an ONNX export: a digest that tells whether the file is what was written.

An ONNX file is a message of protobuf, whose fields may stand in any order, and those of a list anywhere: one more
piece of metadata, `sha256`, is appended to the file.  It holds the digest of all bytes before it.
"""

import hashlib
from pathlib import Path

from glyphs.core.errors import CheckpointError

DIGITS = 64
# Field 14 of a ModelProto, metadata_props, of 74 bytes: field 1, the key, of 6 bytes, and field 2, of 64.
HEAD = b"\x72\x4a\x0a\x06sha256\x12\x40"


def seal(content: bytes) -> bytes:
    """The bytes of an ONNX file with their digest."""
    return content + HEAD + hashlib.sha256(content).hexdigest().encode()


def check_seal(content: bytes, path: Path) -> None:
    """Raise CheckpointError where the bytes are not those that were sealed; older exports have no seal."""
    end = len(content) - len(HEAD) - DIGITS
    if not content.startswith(HEAD, max(end, 0)):
        return
    if hashlib.sha256(memoryview(content)[:end]).hexdigest().encode() != content[-DIGITS:]:
        raise CheckpointError(
            f"{path}: is damaged, or was changed after its export (its digest is another); copy it again, or export "
            "it again"
        )
