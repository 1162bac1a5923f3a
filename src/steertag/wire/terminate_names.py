"""What a Terminate's numbers mean, in the words of the RFCs.

Layer RDMAP is RFC 5040 section 4.8 (RFC 7306 section 8 reports its errors with the same codes),
layer DDP RFC 5041 section 7.2, layer LLP (MPA) RFC 5044 section 8 and RFC 6581 section 8.
"""

from __future__ import annotations

from typing import Final

from steertag.wire import ddp, mpa, rdmap

_LAYERS: Final = {rdmap.LAYER_RDMAP: "RDMAP", ddp.LAYER_DDP: "DDP", mpa.LAYER_LLP: "MPA"}

_ETYPES: Final[dict[tuple[int, int], str]] = {
    (rdmap.LAYER_RDMAP, rdmap.ETYPE_CATASTROPHIC): "local catastrophic error",
    (rdmap.LAYER_RDMAP, rdmap.ETYPE_PROTECTION): "remote protection error",
    (rdmap.LAYER_RDMAP, rdmap.ETYPE_OPERATION): "remote operation error",
    (ddp.LAYER_DDP, ddp.ETYPE_CATASTROPHIC): "local catastrophic error",
    (ddp.LAYER_DDP, ddp.ETYPE_TAGGED): "tagged buffer error",
    (ddp.LAYER_DDP, ddp.ETYPE_UNTAGGED): "untagged buffer error",
    (mpa.LAYER_LLP, mpa.ETYPE_MPA): "MPA error",
}

_CODES: Final[dict[tuple[int, int, int], str]] = {
    (layer, etype, code): name
    for (layer, etype), codes in {
        (rdmap.LAYER_RDMAP, rdmap.ETYPE_PROTECTION): {
            rdmap.P_INVALID_STAG: "invalid STag",
            rdmap.P_BASE_BOUNDS: "base or bounds violation",
            rdmap.P_ACCESS: "access rights violation",
            rdmap.P_STAG_NOT_ASSOCIATED: "STag not associated with the RDMAP stream",
            rdmap.P_TO_WRAP: "TO wrap",
            rdmap.P_CANNOT_INVALIDATE: "STag cannot be invalidated",
            rdmap.P_UNSPECIFIED: "unspecified error",
        },
        (rdmap.LAYER_RDMAP, rdmap.ETYPE_OPERATION): {
            rdmap.O_INVALID_VERSION: "invalid RDMAP version",
            rdmap.O_UNEXPECTED_OPCODE: "unexpected opcode",
            rdmap.O_CATASTROPHIC_STREAM: "catastrophic error, localized to the RDMAP stream",
            rdmap.O_CATASTROPHIC_GLOBAL: "catastrophic error, global",
            rdmap.O_CANNOT_INVALIDATE: "STag cannot be invalidated",
            rdmap.O_UNSPECIFIED: "unspecified error",
        },
        (ddp.LAYER_DDP, ddp.ETYPE_TAGGED): {
            ddp.T_INVALID_STAG: "invalid STag",
            ddp.T_BASE_BOUNDS: "base or bounds violation",
            ddp.T_STAG_NOT_ASSOCIATED: "STag not associated with the DDP stream",
            ddp.T_TO_WRAP: "TO wrap",
            ddp.T_INVALID_VERSION: "invalid DDP version",
        },
        (ddp.LAYER_DDP, ddp.ETYPE_UNTAGGED): {
            ddp.U_INVALID_QN: "invalid QN",
            ddp.U_NO_BUFFER: "invalid MSN, no buffer available",
            ddp.U_MSN_RANGE: "invalid MSN, MSN range is not valid",
            ddp.U_INVALID_MO: "invalid MO",
            ddp.U_TOO_LONG: "DDP message too long for the available buffer",
            ddp.U_INVALID_VERSION: "invalid DDP version",
        },
        (mpa.LAYER_LLP, mpa.ETYPE_MPA): {
            mpa.E_STREAM_LOST: "TCP connection closed, terminated or lost",
            mpa.E_CRC: "CRC error",
            mpa.E_MARKER: "marker and ULPDU length disagree",
            mpa.E_START_FRAME: "invalid MPA Request or Reply Frame",
            mpa.E_LOCAL_CATASTROPHIC: "local catastrophic error",
            mpa.E_INSUFFICIENT_IRD: "insufficient IRD resources",
            mpa.E_NO_MATCHING_RTR: "no matching RTR option",
        },
    }.items()
    for code, name in codes.items()
}

# RFC 5040 and RFC 5041 leave the code of their local catastrophic errors open: any value will do.
_WITHOUT_CODE: Final = frozenset(
    {
        (rdmap.LAYER_RDMAP, rdmap.ETYPE_CATASTROPHIC),
        (ddp.LAYER_DDP, ddp.ETYPE_CATASTROPHIC),
    }
)


def terminate_name(layer: int, etype: int, code: int) -> str:
    """One line for a Terminate's layer, error type and error code, whatever their values.

    E.g. "RDMAP remote protection error: invalid STag"; numbers that no RFC defines are shown as
    such: "DDP error type 7: code 0x12".
    """
    where = _LAYERS.get(layer)
    if where is None:
        return f"layer {layer} error type {etype}: code {code:#04x}"
    kind = _ETYPES.get((layer, etype), f"error type {etype}")
    # "MPA MPA error" helps nobody.
    head = kind if kind.startswith(where) else f"{where} {kind}"
    if (layer, etype) in _WITHOUT_CODE:
        return head
    return f"{head}: {_CODES.get((layer, etype, code), f'code {code:#04x}')}"
