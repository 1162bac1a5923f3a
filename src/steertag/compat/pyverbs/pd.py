"""pyverbs' `pd`: protection domains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from steertag import verbs
from steertag.compat.pyverbs.base import PyverbsCM, PyverbsObject
from steertag.compat.pyverbs.device import Context
from steertag.compat.pyverbs.pyverbs_error import PyverbsUserError, failing, unsupported

if TYPE_CHECKING:
    from steertag.compat.pyverbs.wr import SGE


class PD(PyverbsCM):
    """A protection domain.

    Args:
        creator: a Context, or a CMID, whose own it stands for then.
        core (by name): an object of `steertag.verbs` that is open already.
    """

    close_order = 1
    closing = "Failed to dealloc PD"
    core: verbs.PD

    def __init__(self, creator: object, **kwargs: object) -> None:
        super().__init__()
        if kwargs.get("handle") is not None:
            raise unsupported("Failed to import PD")
        core = kwargs.get("core")
        self._borrowed = isinstance(core, verbs.PD)
        if isinstance(core, verbs.PD):
            self.core = core
        elif isinstance(creator, Context):
            with failing("Failed to allocate PD"):
                self.core = verbs.PD(creator.core)
        elif isinstance(found := getattr(creator, "pd", None), PD):
            self._borrowed = True
            self.core = found.core
        else:
            raise PyverbsUserError(f"Cannot create PD from {type(creator)}")
        self._open = True
        self.ctx = creator
        if isinstance(creator, Context):
            creator.add_ref(self)

    def _release(self) -> None:
        if not self._borrowed:
            self.core.close()

    @property
    def handle(self) -> int:
        return self.core.handle

    def advise_mr(self, advise: int, flags: int, sg_list: Sequence[SGE]) -> int:
        raise unsupported("Failed to advise MR")

    def unimport(self) -> None:
        raise unsupported("Failed to unimport PD")


class ParentDomainContext(PyverbsObject):
    def __init__(
        self, pd: PD, alloc_func: object, free_func: object, user_data: object = None
    ) -> None:
        super().__init__()
        self.pd = pd
        self.p_alloc = alloc_func
        self.p_free = free_func
        self.user_data = user_data


class ParentDomainInitAttr(PyverbsObject):
    def __init__(
        self, pd: PD, pd_context: ParentDomainContext | None = None, comp_mask: int = 0
    ) -> None:
        super().__init__()
        self.pd = pd
        self.pd_context = pd_context
        self.comp_mask = comp_mask


class ParentDomain(PD):
    """A domain with allocators of the program's, of which the device has none (as siw)."""

    def __init__(self, context: Context, attr: ParentDomainInitAttr) -> None:
        raise unsupported("Failed to allocate Parent Domain")
