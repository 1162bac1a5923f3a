"""Numbers of the verbs (libibverbs' `verbs.h`): what programs pass in and read back.

Hot masks are plain ints: `IntFlag &` costs a microsecond.
"""

from enum import IntEnum
from typing import Final

ACCESS_LOCAL_WRITE: Final = 1
ACCESS_REMOTE_WRITE: Final = 2
ACCESS_REMOTE_READ: Final = 4
ACCESS_REMOTE_ATOMIC: Final = 8
ACCESS_MW_BIND: Final = 16
ACCESS_ZERO_BASED: Final = 32
ACCESS_REMOTE_INVALIDATE: Final = 1 << 30
"""Not in verbs.h: a peer's Send with Invalidate may invalidate the region."""
ACCESS_OPTIONAL: Final = 0x3FF00000
"""Rights that a device may leave unheeded (`IBV_ACCESS_OPTIONAL_RANGE`), as this one does."""
ACCESS_REMOTE: Final = ACCESS_REMOTE_WRITE | ACCESS_REMOTE_READ | ACCESS_REMOTE_ATOMIC
ACCESS_KNOWN: Final = (
    ACCESS_LOCAL_WRITE
    | ACCESS_REMOTE
    | ACCESS_MW_BIND
    | ACCESS_ZERO_BASED
    | ACCESS_REMOTE_INVALIDATE
    | ACCESS_OPTIONAL
)

MW_TYPE_1: Final = 1
MW_TYPE_2: Final = 2

SEND_FENCE: Final = 1
SEND_SIGNALED: Final = 2
SEND_SOLICITED: Final = 4
SEND_INLINE: Final = 8
SEND_KNOWN: Final = SEND_FENCE | SEND_SIGNALED | SEND_SOLICITED | SEND_INLINE

WR_RDMA_WRITE: Final = 0
WR_RDMA_WRITE_WITH_IMM: Final = 1
WR_SEND: Final = 2
WR_SEND_WITH_IMM: Final = 3
WR_RDMA_READ: Final = 4
WR_ATOMIC_CMP_AND_SWP: Final = 5
WR_ATOMIC_FETCH_AND_ADD: Final = 6
WR_LOCAL_INV: Final = 7
WR_BIND_MW: Final = 8
WR_SEND_WITH_INV: Final = 9
WR_RDMA_READ_WITH_INV: Final = 11
"""The kernel's number (`IB_WR_RDMA_READ_WITH_INV`); libibverbs has none for it."""
WR_ATOMIC_SWAP: Final = 0x100
"""RFC 7306's Swap; no verbs.h has a number for it."""

QPT_RC: Final = 2


class WcStatus(IntEnum):
    """`enum ibv_wc_status`."""

    SUCCESS = 0
    LOC_LEN_ERR = 1
    LOC_QP_OP_ERR = 2
    LOC_EEC_OP_ERR = 3
    LOC_PROT_ERR = 4
    WR_FLUSH_ERR = 5
    MW_BIND_ERR = 6
    BAD_RESP_ERR = 7
    LOC_ACCESS_ERR = 8
    REM_INV_REQ_ERR = 9
    REM_ACCESS_ERR = 10
    REM_OP_ERR = 11
    FATAL_ERR = 19
    GENERAL_ERR = 21


WC_SEND: Final = 0
WC_RDMA_WRITE: Final = 1
WC_RDMA_READ: Final = 2
WC_COMP_SWAP: Final = 3
WC_FETCH_ADD: Final = 4
WC_BIND_MW: Final = 5
WC_LOCAL_INV: Final = 6
WC_SWAP: Final = 0x100
WC_RECV: Final = 128
WC_RECV_RDMA_WITH_IMM: Final = 129

WC_FLAG_WITH_IMM: Final = 2
WC_FLAG_WITH_INV: Final = 8

WC_OF_WR: Final = {
    WR_RDMA_WRITE: WC_RDMA_WRITE,
    WR_RDMA_WRITE_WITH_IMM: WC_RDMA_WRITE,
    WR_SEND: WC_SEND,
    WR_SEND_WITH_IMM: WC_SEND,
    WR_RDMA_READ: WC_RDMA_READ,
    WR_ATOMIC_CMP_AND_SWP: WC_COMP_SWAP,
    WR_ATOMIC_FETCH_AND_ADD: WC_FETCH_ADD,
    WR_LOCAL_INV: WC_LOCAL_INV,
    WR_BIND_MW: WC_BIND_MW,
    WR_SEND_WITH_INV: WC_SEND,
    WR_RDMA_READ_WITH_INV: WC_RDMA_READ,
    WR_ATOMIC_SWAP: WC_SWAP,
}
"""Completion opcode of each work request opcode."""
