"""PROTOCOL layer: stream sockets over RDMA, the Sockets Direct Protocol (sans-I/O)."""
