"""pyverbs' `spec`: what flows are recognized by. They can be made; there are no flows."""

from __future__ import annotations

from steertag.compat.pyverbs.base import PyverbsObject


class Spec(PyverbsObject):
    """Its members are what it was made with."""

    def __init__(self, is_inner: int = 0, **members: object) -> None:
        super().__init__()
        self.is_inner = is_inner
        vars(self).update(members)


class EthSpec(Spec):
    pass


class Ipv4ExtSpec(Spec):
    pass


class Ipv6Spec(Spec):
    pass


class TcpUdpSpec(Spec):
    pass
