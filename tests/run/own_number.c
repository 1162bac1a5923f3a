/* What a program sees of a family by its number: streams and sequences of messages.
 *
 *     own_number FAMILY TYPE [-u]
 *
 * TYPE: stream or seqpacket. -u: addresses are names, as AF_UNIX has them; else sockaddr_in's. The
 * same lines come from a family of the kernel's and from one that `stag run` serves.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LARGE = 300000, MESSAGES = 200, PATIENCE_MS = 20000 };

struct name {
    struct sockaddr_storage storage;
    socklen_t size;
};

static int family, type, named;

static void fail(const char *what)
{
    printf("%s: %s\n", what, strerrorname_np(errno));
    exit(1);
}

static void say(const char *what, long result)
{
    if (result < 0)
        printf("%s %s\n", what, strerrorname_np(errno));
    else
        printf("%s %ld\n", what, result);
}

static int make(int flags)
{
    int fd = socket(family, type | flags, 0);
    if (fd < 0)
        fail("socket");
    return fd;
}

/* Where a server may be: a port that the family chooses, or a name of this process's. */
static struct name anywhere(void)
{
    static int count;
    struct name name = {.size = sizeof(struct sockaddr_in)};
    name.storage.ss_family = (sa_family_t)family;
    if (named) {
        char *text = (char *)&name.storage + sizeof(sa_family_t);
        int length = snprintf(text + 1, 60, "own-number-%d-%d", getpid(), count++);
        name.size = (socklen_t)(sizeof(sa_family_t) + 1 + (size_t)length);
    } else {
        ((struct sockaddr_in *)&name.storage)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    }
    return name;
}

static struct name name_of(int fd, int (*ask)(int, struct sockaddr *, socklen_t *))
{
    struct name name = {.size = sizeof name.storage};
    if (ask(fd, (struct sockaddr *)&name.storage, &name.size))
        fail("name");
    return name;
}

static int listener(struct name *name)
{
    int fd = make(0);
    *name = anywhere();
    if (bind(fd, (struct sockaddr *)&name->storage, name->size))
        fail("bind");
    if (listen(fd, 10))
        fail("listen");
    *name = name_of(fd, getsockname);
    return fd;
}

static int connected(const struct name *name)
{
    int fd = make(0);
    if (connect(fd, (const struct sockaddr *)&name->storage, name->size))
        fail("connect");
    return fd;
}

static void pair(int ends[2])
{
    struct name name;
    int server = listener(&name);
    ends[0] = connected(&name);
    ends[1] = accept(server, NULL, NULL);
    if (ends[1] < 0)
        fail("accept");
    close(server);
}

static short events(int fd, short wanted, int timeout)
{
    struct pollfd one = {.fd = fd, .events = wanted};
    if (poll(&one, 1, timeout) < 0)
        fail("poll");
    return one.revents;
}

static void options(void)
{
    int fd = make(SOCK_CLOEXEC | SOCK_NONBLOCK), value;
    socklen_t size = sizeof value;
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &value, &size))
        fail("SO_TYPE");
    say("type is as asked", value == type);
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &value, &size))
        fail("SO_DOMAIN");
    say("domain is as asked", value == family);
    struct name name;
    int server = listener(&name);
    if (getsockopt(server, SOL_SOCKET, SO_ACCEPTCONN, &value, &size))
        fail("SO_ACCEPTCONN");
    say("listens", value);
    say("name is of the family", name.storage.ss_family == family);
    struct name other = name;
    other.storage.ss_family = AF_APPLETALK;
    say("other family's name refused",
        connect(fd, (struct sockaddr *)&other.storage, other.size) < 0);
    close(server);
    int refused = make(0);
    say("nobody listens", connect(refused, (struct sockaddr *)&name.storage, name.size));
    close(refused);
    close(fd);
}

static void waiting(void)
{
    struct name name;
    int server = listener(&name), fd = make(SOCK_NONBLOCK), error, other;
    socklen_t size = sizeof error;
    say("listener polls", events(server, POLLIN, 0));
    if (connect(fd, (struct sockaddr *)&name.storage, name.size) && errno != EINPROGRESS)
        fail("connect");
    say("connecting polls", events(fd, POLLOUT, PATIENCE_MS));
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
    say("connecting has failed with", error);
    say("listener polls then", events(server, POLLIN, PATIENCE_MS));
    struct name peer = {.size = sizeof peer.storage};
    other = accept4(server, (struct sockaddr *)&peer.storage, &peer.size, SOCK_NONBLOCK);
    say("accepted", other >= 0);
    say("peer is of the family", peer.storage.ss_family == family);
    struct name back = name_of(fd, getpeername);
    say("peer's peer is the server",
        back.size == name.size && !memcmp(&back.storage, &name.storage, name.size));
    char octet;
    say("nothing to receive", recv(other, &octet, 1, 0));
    close(fd);
    close(other);
    close(server);
}

static void by_epoll(void)
{
    int ends[2], set = epoll_create1(0);
    pair(ends);
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data.fd = ends[1]};
    if (epoll_ctl(set, EPOLL_CTL_ADD, ends[1], &event))
        fail("epoll_ctl");
    say("quiet", epoll_wait(set, &event, 1, 0));
    send(ends[0], "a", 1, 0);
    say("edge", epoll_wait(set, &event, 1, PATIENCE_MS));
    say("edge is told once", epoll_wait(set, &event, 1, 0));
    send(ends[0], "b", 1, 0);
    say("next edge", epoll_wait(set, &event, 1, PATIENCE_MS));
    char room[10];
    long got = 0;
    while (got < 2) {
        long more = recv(ends[1], room, sizeof room, 0);
        if (more <= 0)
            fail("recv");
        got += more;
    }
    say("received", got);
    say("edge after all is received", epoll_wait(set, &event, 1, 0));
    shutdown(ends[0], SHUT_WR);
    say("end", epoll_wait(set, &event, 1, PATIENCE_MS));
    say("end is told by", event.events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP));
    close(ends[0]);
    close(ends[1]);
    close(set);
}

static void messages(void)
{
    int ends[2];
    char room[100] = "";
    pair(ends);
    send(ends[0], "one", 3, 0);
    send(ends[0], "three", 5, 0);
    if (type == SOCK_SEQPACKET) {
        say("first", recv(ends[1], room, sizeof room, 0));
        struct iovec part = {.iov_base = room, .iov_len = 2};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
        say("short", recvmsg(ends[1], &message, 0));
        say("is truncated", !!(message.msg_flags & MSG_TRUNC));
    } else {
        say("both", recv(ends[1], room, 8, MSG_WAITALL));
    }
    printf("text %.8s\n", room);
    send(ends[1], "peek", 4, 0);
    say("peeked", recv(ends[0], room, 2, MSG_PEEK));
    say("peeked whole", recv(ends[0], room, 4, MSG_PEEK));
    say("received", recv(ends[0], room, 4, 0));
    close(ends[0]);
    close(ends[1]);
}

static void much(void)
{
    int ends[2], status;
    pair(ends);
    pid_t child = fork();
    static char out[LARGE], in[LARGE];
    for (int i = 0; i < LARGE; i++)
        out[i] = (char)(i * 7 + i / 256);
    if (child == 0) {
        close(ends[1]);
        if (type == SOCK_SEQPACKET) {
            for (int i = 1; i <= MESSAGES; i++)
                if (send(ends[0], out + i, (size_t)(i * 37), 0) != i * 37)
                    _exit(1);
        } else {
            for (int sent = 0; sent < LARGE;) {
                long more = send(ends[0], out + sent, (size_t)(LARGE - sent), 0);
                if (more < 0)
                    _exit(1);
                sent += (int)more;
            }
        }
        _exit(shutdown(ends[0], SHUT_WR) < 0);
    }
    long good = 0, got = 0;
    if (type == SOCK_SEQPACKET) {
        for (int i = 1; i <= MESSAGES; i++)
            good += recv(ends[1], in, sizeof in, 0) == i * 37 && !memcmp(in, out + i, (size_t)(i * 37));
        got = recv(ends[1], in, sizeof in, 0);
    } else {
        while ((got = recv(ends[1], in + good, (size_t)(LARGE - good), 0)) > 0)
            good += got;
        say("as sent", !memcmp(in, out, LARGE));
    }
    say("good", good);
    say("then the end", got);
    waitpid(child, &status, 0);
    say("the child is well", status == 0);
    close(ends[0]);
    close(ends[1]);
}

static void half_close(void)
{
    int ends[2];
    char room[100];
    pair(ends);
    send(ends[0], "question", 8, 0);
    say("shutdown", shutdown(ends[0], SHUT_WR));
    say("sending then", send(ends[0], "x", 1, MSG_NOSIGNAL));
    say("question", recv(ends[1], room, sizeof room, 0));
    say("its end", recv(ends[1], room, sizeof room, 0));
    say("half closed polls", events(ends[1], POLLIN | POLLRDHUP, PATIENCE_MS));
    say("answer is sent", send(ends[1], "the answer", 10, 0));
    say("answer", recv(ends[0], room, sizeof room, 0));
    close(ends[1]);
    say("its end too", recv(ends[0], room, sizeof room, 0));
    say("closed polls", events(ends[0], POLLIN | POLLRDHUP, PATIENCE_MS));
    close(ends[0]);
}

static void gone(void)
{
    int ends[2];
    char room[10];
    pair(ends);
    int copy = dup(ends[0]);
    close(ends[0]);
    send(copy, "still", 5, 0);
    say("through a copy", recv(ends[1], room, sizeof room, 0));
    close(copy);
    say("last copy closed", recv(ends[1], room, sizeof room, 0));
    long sent = 0; /* the first may be answered by a reset only after it was taken */
    while (sent >= 0 && events(ends[1], POLLOUT, PATIENCE_MS))
        sent = send(ends[1], "x", 1, MSG_NOSIGNAL);
    say("sending to nobody", sent);
    close(ends[1]);
}

int main(int count, char **words)
{
    if (count < 3)
        return 2;
    family = atoi(words[1]);
    type = strcmp(words[2], "seqpacket") ? SOCK_STREAM : SOCK_SEQPACKET;
    named = count > 3;
    setvbuf(stdout, NULL, _IONBF, 0);
    options();
    waiting();
    by_epoll();
    messages();
    much();
    half_close();
    gone();
    return 0;
}
