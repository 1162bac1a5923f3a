"""What pyverbs' `libibverbs` offers to Python: the constants."""

from steertag.compat.pyverbs import libibverbs_enums

globals().update(
    (name, value) for name, value in vars(libibverbs_enums).items() if not name.startswith("__")
)
