"""TCP (RFC 9293), after net/ipv4/tcp*.c."""
