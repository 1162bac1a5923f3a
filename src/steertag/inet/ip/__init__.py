"""The network layer: IPv4, IPv6, ICMP, ARP, ND, routes."""
