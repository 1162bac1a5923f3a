"""`python -m steertag.patch PROGRAM`: an unmodified Python program over a family of steertag's."""

from __future__ import annotations

import sys

from steertag.patch.program import main

if __name__ == "__main__":
    main(sys.argv[1:])
