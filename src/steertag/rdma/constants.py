"""Numbers of the verbs (libibverbs' `verbs.h`): what programs pass in and read back.

Hot masks are plain ints: `IntFlag &` costs a microsecond.
"""

from enum import IntEnum
from typing import Final

ACCESS_LOCAL_WRITE: Final = 1
ACCESS_REMOTE_WRITE: Final = 2
ACCESS_REMOTE_READ: Final = 4
ACCESS_KNOWN: Final = ACCESS_LOCAL_WRITE | ACCESS_REMOTE_WRITE | ACCESS_REMOTE_READ

SEND_FENCE: Final = 1
SEND_SIGNALED: Final = 2
SEND_SOLICITED: Final = 4
SEND_INLINE: Final = 8
SEND_KNOWN: Final = SEND_FENCE | SEND_SIGNALED | SEND_SOLICITED
"""What a request may ask for. Not for inline data: payload leaves from where it lies."""

WR_RDMA_WRITE: Final = 0
WR_SEND: Final = 2
WR_RDMA_READ: Final = 4

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
WC_RECV: Final = 128

WC_OF_WR: Final = {WR_RDMA_WRITE: WC_RDMA_WRITE, WR_SEND: WC_SEND, WR_RDMA_READ: WC_RDMA_READ}
"""Completion opcode of each work request opcode."""
