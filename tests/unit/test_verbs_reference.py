"""The reference page says what the code has: every name, every parameter, the defaults."""

from __future__ import annotations

import inspect
import re

import pytest

from steertag import verbs
from steertag.verbs import aio
from tests.support import PROJECT

PAGE = (PROJECT / "docs" / "reference" / "verbs.md").read_text(encoding="utf-8")
ENTRY = re.compile(r"`([\w.]+)\(([^`]*)\)`")
HEADINGS = [line for line in PAGE.splitlines() if line.startswith("`")]
DOCUMENTED = {name: arguments for line in HEADINGS for name, arguments in ENTRY.findall(line)}


def resolve(name: str) -> object:
    found: object = verbs
    for part in name.split("."):
        found = getattr(found, part)
    return found


def documented_parameters(arguments: str) -> list[str]:
    return [
        part.split("=")[0].strip()
        for part in re.split(r",(?![^(]*\))", arguments)
        if part.strip() not in ("", "*")
    ]


def test_the_page_has_every_public_name() -> None:
    assert [name for name in verbs.__all__ if f"`{name}" not in PAGE] == []
    assert [name for name in aio.__all__ if f"`aio.{name}(" not in PAGE] == []


@pytest.mark.parametrize("name", [name for name in DOCUMENTED if name in verbs.__all__])
def test_the_parameters_on_the_page_are_the_codes(name: str) -> None:
    signature = inspect.signature(resolve(name))  # type: ignore[arg-type]
    assert documented_parameters(DOCUMENTED[name]) == list(signature.parameters)


@pytest.mark.parametrize(
    "name", [name for name in DOCUMENTED if "." in name and name != "Context.progress"]
)
def test_methods_on_the_page_exist_with_their_parameters(name: str) -> None:
    signature = inspect.signature(resolve(name))  # type: ignore[arg-type]
    parameters = [name for name in signature.parameters if name != "self"]
    documented = documented_parameters(DOCUMENTED[name])
    assert len(documented) <= len(parameters)
    taken = [name for name in documented if name != "number"]
    assert [name for name in taken if name not in parameters] == []


@pytest.mark.parametrize("name", ["QPCap", "ConnParam"])
def test_the_defaults_on_the_page_are_the_codes(name: str) -> None:
    shown = [part.strip() for part in DOCUMENTED[name].replace('b""', "b''").split(", ")]
    parameters = inspect.signature(getattr(verbs, name)).parameters.values()
    defaults = [f"{parameter.name}={parameter.default!r}" for parameter in parameters]
    assert [part for part in shown if part != "*"] == defaults
