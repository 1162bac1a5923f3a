"""What every protocol family is made of and enters through (Linux: include/net/sock.h, net/core)."""
