"""Takes the fenced code blocks out of the project's pages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support import PROJECT

PAGES: Final = sorted(
    [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *(PROJECT / "docs").rglob("*.md")]
)
_FENCE: Final = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>[\w+-]*)[^`\n]*$")
_SHELL: Final = frozenset({"sh", "bash", "shell"})


@dataclass(frozen=True)
class Block:
    """A fenced block of `page`; `line` is that of its opening fence."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(PROJECT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The command lines: those behind `$ ` in a console, all of them in a script.

        A line that ends in a backslash goes on in the next.
        """
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        elif self.language not in _SHELL:
            return []
        stripped = (re.sub(r"\s+", " ", line).strip() for line in lines)
        return [line for line in stripped if line and not line.startswith("#")]


def blocks(page: Path) -> list[Block]:
    found = []
    opened: re.Match[str] | None = None
    start, body = 0, list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if opened is None:
            if (opened := _FENCE.match(line)) is not None:
                start, body = number, []
        elif line.strip() == opened["fence"]:
            text = "".join(f"{part.removeprefix(opened['indent'])}\n" for part in body)
            found.append(Block(page, start, opened["language"], text))
            opened = None
        else:
            body.append(line)
    assert opened is None, f"{page}:{start}: a code block is not closed"
    return found
