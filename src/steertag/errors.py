"""Three kinds of error, never mixed, and a fourth for a caller's bug.

* `WireError`: these octets are no valid header. Drop them, count them.
* `ProtocolError`: the peer broke the rules. Tell the peer (Terminate, RST), end the stream.
* `OSError`: the caller must handle it. Raised by the socket layer and the verbs only.
* `StateError`: a bug in the caller, like `ValueError`.
"""

import os


class WireError(ValueError):
    """Octets from the network do not form a valid header."""


class StateError(RuntimeError):
    """A local call that is illegal in the current state."""


class ProtocolError(Exception):
    """The peer violated a protocol; carries what a Terminate message must say.

    Attributes:
        layer: 0 RDMAP, 1 DDP, 2 LLP (RFC 5040 section 4.8).
        etype: error type within the layer.
        code: error code within the type.
    """

    def __init__(self, layer: int, etype: int, code: int, detail: str) -> None:
        super().__init__(f"{detail} (layer {layer}, type {etype}, code {code:#04x})")
        self.layer = layer
        self.etype = etype
        self.code = code
        self.detail = detail


def os_error(code: int, detail: str = "") -> OSError:
    """`OSError(code)` in the system's words; Python narrows it, to `ConnectionResetError` say."""
    text = os.strerror(code)
    return OSError(code, f"{text}: {detail}" if detail else text)
