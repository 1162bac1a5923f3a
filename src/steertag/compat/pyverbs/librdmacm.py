"""What pyverbs' `librdmacm` offers to Python: the constants."""

from steertag.compat.pyverbs import librdmacm_enums

globals().update(
    (name, value) for name, value in vars(librdmacm_enums).items() if not name.startswith("__")
)
