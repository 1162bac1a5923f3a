"""Which family a socket of the program is to have."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from steertag.family.rules import Rules, check_use
from steertag.host.ops import FAMILIES
from steertag.inet.const import AF_INET_NEW_TCP
from steertag.sdp.options import AF_INET_SDP

FAMILY_VARIABLE: Final = "STEERTAG_FAMILY"
_CARRIER_VARIABLE: Final = "STEERTAG_SDP_TRANSPORT"


@dataclass(frozen=True, slots=True)
class Choice:
    """A family.

    Attributes:
        number: of the family; None: the host's sockets.
        fallback: what SDP_FALLBACK is set to; None: what it is.
    """

    number: int | None
    fallback: str | None = None

    def __str__(self) -> str:
        if self.number is None:
            return "the host's sockets"
        name = {AF_INET_SDP: "AF_INET_SDP", AF_INET_NEW_TCP: "AF_INET_NEW_TCP"}.get(self.number)
        fallback = f", SDP_FALLBACK={self.fallback}" if self.fallback is not None else ""
        return (name or f"family {self.number}") + fallback


HOST: Final = Choice(None)


@dataclass(frozen=True, slots=True)
class Policy:
    """What decides.

    Attributes:
        default: the family where no rule matches.
        rules: None: there are none.
        carrier: the family below SDP, which a rule's `tcp` means.
    """

    default: Choice
    rules: Rules | None = None
    carrier: Choice = HOST

    @classmethod
    def of(
        cls,
        family: str | int | None = None,
        rules: Rules | str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> Policy:
        """What is asked for; what is left out comes from the environment.

        Args:
            family: a name as rules have it, or a number. Left out: STEERTAG_FAMILY; without that,
                "host" where there are rules and "sdp" where there are none.
            rules: or the path of their file. Left out: the file that SDP_CONFIG names, unless a
                family is given.

        Raises:
            ValueError: no such family, or a wrong line in the file.
            OSError: the file can't be read.
        """
        if rules is None and family is None:
            rules = Rules.from_environment(environ)
        elif rules is not None and not isinstance(rules, Rules):
            rules = Rules.load(rules)
        carrier = HOST
        if environ.get(_CARRIER_VARIABLE) == "new_tcp":
            carrier = Choice(AF_INET_NEW_TCP)
        named = str(family) if family is not None else environ.get(FAMILY_VARIABLE)
        if not named:
            named = "sdp" if rules is None else "host"
        default = _choice(check_use(named), carrier)
        if named.lower() == "sdp":
            default = Choice(AF_INET_SDP)  # with the fallback that SDP_FALLBACK says
        return cls(default, rules, carrier)

    def choices(self) -> set[Choice]:
        """Every one that it can come to."""
        rules = self.rules.rules if self.rules is not None else ()
        return {self.default} | {_choice(rule.use, self.carrier) for rule in rules}

    def line_of(self, choice: Choice) -> str:
        """`FILE:LINE: ` of the first rule that says so; "" where it is the default."""
        if self.rules is not None and choice != self.default:
            for rule in self.rules.rules:
                if _choice(rule.use, self.carrier) == choice:
                    return f"{self.rules.name}:{rule.line}: "
        return ""

    def choose(self, role: str, address: str | None, port: int, kind: int) -> Choice:
        """For a socket that is bound or connects there."""
        if self.rules is None:
            return self.default
        use = self.rules.choose(sys.argv[0], role, address, port, "", kind=kind)
        return _choice(use, self.carrier) if use else self.default


def _choice(use: str, carrier: Choice) -> Choice:
    if use == "sdp":
        return Choice(AF_INET_SDP, "never")
    if use == "both":
        return Choice(AF_INET_SDP, "auto")
    if use == "tcp":
        return carrier
    if use == "new_tcp":
        return Choice(AF_INET_NEW_TCP)
    if use == "host" or int(use) in FAMILIES:
        return HOST
    return Choice(int(use))
