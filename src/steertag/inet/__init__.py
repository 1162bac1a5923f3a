"""AF_INET_NEW_TCP: TCP/IP in user space."""
