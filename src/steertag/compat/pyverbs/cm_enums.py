"""pyverbs' older name for `librdmacm_enums`."""

from steertag.compat.pyverbs import librdmacm_enums

globals().update(
    (name, value) for name, value in vars(librdmacm_enums).items() if not name.startswith("__")
)
