"""`pyverbs` for processes that a program under `python -m steertag.compat.pyverbs` starts."""

from steertag.compat.pyverbs import install

install()
