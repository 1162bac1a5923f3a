"""`stag run -- PROGRAM`: an unmodified program's sockets, served by a Stack.

The program runs under a seccomp filter that sends a few system calls (socket, connect, accept, ...)
to a supervisor; everything else it does natively. A socket that the Stack serves is one end of a
socketpair in the program; whoever holds the other end moves octets between it and a socket of the
family. Two processes do the work, so that neither waits for the other's interpreter lock:

* control (`launch`, `supervisor`, `calls_*`): receives the calls, keeps what a socket's state is
  (`emulated`), puts descriptors into the program, answers.
* data (`data`, `relay`): owns the Stack, opens the family's sockets, moves the octets.

`channel` is what they say to each other. It is a compatibility tool and no security boundary.
"""
