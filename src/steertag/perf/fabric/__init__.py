"""Counterparts of librdmacm's test programs: rping, ucmatose, rdma_client and rdma_server.

They speak the programs' own protocols, so that either end of a connection can be one of them or
one of ours, over siw or iWARP hardware.
"""
