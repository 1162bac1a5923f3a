"""SYN cookies: the request is kept in the SYN-ACK's sequence number (RFC 4987 section 3.6)."""
