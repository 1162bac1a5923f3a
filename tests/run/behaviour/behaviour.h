/* What sockets do, as a program sees it: small named cases, each of which says what it observed.
 *
 * A case runs in a process of its own. What it says is independent of time, of port numbers and of
 * how far the peer is away, so that two runs, over whatever carries the octets, can be compared.
 */
#ifndef BEHAVIOUR_H
#define BEHAVIOUR_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CALM = 1 /* not under a signal storm */ };

struct address {
    struct sockaddr_storage storage;
    socklen_t length;
};

typedef void case_function(void);
void enter_case(const char *name, int flags, case_function *run);

#define CASE_WITH(name, flags)                                                         \
    static void name(void);                                                            \
    __attribute__((constructor)) static void enter_##name(void)                        \
    {                                                                                  \
        enter_case(#name, flags, name);                                                \
    }                                                                                  \
    static void name(void)
#define CASE(name) CASE_WITH(name, 0)

/* Observations. */
void say(const char *key, const char *format, ...) __attribute__((format(printf, 2, 3)));
void say_result(const char *key, long result);    /* "0", a count, or the error's name */
void say_events(const char *key, short revents);  /* IN|OUT|... */
const char *error_name(int number);
_Noreturn void give_up(const char *what); /* the case can't go on: says so, with errno */

/* Addresses. */
struct address where(int port);          /* that clients connect to */
struct address here(int port);           /* that servers bind */
int port_of(const struct address *address);
const char *symbol(const struct address *address); /* PEER, HERE, ANY: no numbers */
int nobody(void);                        /* a port that nobody listens on */

/* Sockets. */
int make(int type);                      /* of the family that the run is about */
int listening(int backlog, struct address *address);
int connected_to(const struct address *address);
void connected(int *client, int *server);
int accepted(int listener);              /* waits for it first */
int socket_error(int fd);
void set_nonblocking(int fd, bool on);

/* Waiting. */
short await(int fd, short events);       /* until one of them is there, or HUP or ERR; 0: never */
short await_for(int fd, short events, int milliseconds);
short at_once(int fd, short events);     /* what poll says now */
short still(int fd, short events);       /* what poll says after a while in which nothing comes */
bool await_octets(int fd, int count);    /* until FIONREAD says so */
size_t read_all(int fd, void *buffer, size_t count); /* until so many, the end or an error */
size_t write_all(int fd, const void *buffer, size_t count);
size_t fill(int fd);                     /* write until EAGAIN; non-blocking */
void nap(int milliseconds);
extern void *volatile nowhere;          /* an address where there is no memory */
int ended(pid_t child);                  /* its exit status */

/* Signals. */
extern volatile sig_atomic_t signals_seen;
void count_signal(int number, int flags);
void alarm_in(int milliseconds);
void ignore_sigpipe(void);

#endif
