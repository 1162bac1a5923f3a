"""The DEVICE layer: what carries packets or octets below a protocol."""
