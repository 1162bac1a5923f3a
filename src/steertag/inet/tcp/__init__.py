"""TCP (RFC 9293), after net/ipv4/tcp*.c.

Which file does what, from the bottom up; a file imports from its own paragraph and those above it:

* What there is: `sock` (a connection), `skb` (a piece of its stream), `rtx` (what is sent and not
  acknowledged), `ofo` (what came out of order), `rmem` (memory of what came), `hash` (ports and
  connections), `net` (what TCP keeps per Stack), `isn` (unguessable numbers), `sysctl`.
* What is reckoned: `rtt` (round trips), `window` (what we offer), `cwnd` and `cong` (what we may
  send), `rate` (what is delivered), `rack`, `sack`, `undo` (what was lost, or was not), `urgent`
  (the octet beside the stream), `timer` (setting timers). `ackstate` is what one acknowledgement
  has brought so far. They send nothing.
* The sender: `output` (what goes out), `retransmit`, `recovery`, `ack` (what acknowledgements
  mean). They import each other: an acknowledgement sends, and what is sent awaits one.
* `reset`: segments that belong to no connection, and limits on answers.
* The life of a connection: `connect`, `listen`, `request`, `syncookies`, `fastopen` (opening),
  `input` (segments of a connection), `close`, `timewait` (ending), `timeout` (what expired timers
  do). They import each other, as RFC 9293's states lead to each other: a SYN that comes in
  TIME-WAIT opens a connection, a segment with FIN ends one.
* The edges, which nothing above imports: `rcv` (segments come in here), `err` (ICMP errors),
  `calls` and `opts` (the user's calls and options), `info` (TCP_INFO), `prot` (all of it as a
  protocol, which `inet.af_inet` registers).

Within the two circles a file imports the other as a module (`from steertag.inet.tcp import output`)
and takes names from it when called. Names themselves are taken from `retransmit` by `recovery`, and
from `request` by `listen` and `syncookies`: these two load behind the rest, as they do from `prot`.
`timer` alone imports, in a function, from below: whoever makes a connection's timers says what they
do.
"""
