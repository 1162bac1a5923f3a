"""The network layer: IPv4, IPv6, ICMP, ARP, ND, routes.

Which file does what, from the bottom up; imports go upwards in this list only, and what a file
needs of the layer as a whole it is given as an `InetNet`:

* `addr` (addresses as text and octets), `packet` (what is handed to the transports), `sysctl`,
  `devinet` (what is kept per device).
* `route` (the table), `saddr` (which source), `pmtu` (path MTUs), `dst` (a route in use, by which
  packets leave), `fragment` (cutting them), `output` (finding the way out).
* `input4`, `input6` (packets come in), `frag` (putting fragments together), `input` (frames: to
  one of these, or to ARP).
* `neigh` (neighbours, and how they are asked for), `arp` and `ndisc` (how either version asks),
  `autoconf` (addresses and routers that IPv6 finds for itself).
* `icmp`, `icmp6`, `ratelimit`: answers and errors.
* `net`: `InetNet`, all of it for one Stack: what the transports and the user see.
"""
