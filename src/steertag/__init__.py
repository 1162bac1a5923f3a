"""A network subsystem in user space, in the shape of Linux's, with a software RDMA NIC."""

__version__ = "0.1.0"
