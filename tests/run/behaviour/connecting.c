/* connect(): blocking and not, refused, pending, repeated, and what a socket says before it. */
#include "behaviour.h"

static int attempt(int fd, const struct address *address)
{
    return connect(fd, (const struct sockaddr *)&address->storage, address->length);
}

CASE(blocking_connect)
{
    struct address address;
    int listener = listening(8, &address);
    int client = make(SOCK_STREAM);
    say_result("connect", attempt(client, &address));
    say_events("poll", at_once(client, POLLIN | POLLOUT));
    say("error", "%s", error_name(socket_error(client)));
    say_result("again", attempt(client, &address));
    int server = accepted(listener);
    say_result("write", write(client, "hello", 5));
    char text[8] = "";
    say_result("read", (long)read_all(server, text, 5));
    say("text", "%s", text);
}

CASE(nonblocking_connect)
{
    struct address address;
    listening(8, &address);
    int client = make(SOCK_STREAM | SOCK_NONBLOCK);
    say_result("connect", attempt(client, &address));
    say_events("poll", await(client, POLLOUT));
    say("error", "%s", error_name(socket_error(client)));
    say_result("second", attempt(client, &address));
    say_result("third", attempt(client, &address));
    char octet;
    say_result("read", read(client, &octet, 1));
}

CASE(nonblocking_connect_without_poll_is_asked_by_connect)
{
    struct address address;
    listening(8, &address);
    int client = make(SOCK_STREAM | SOCK_NONBLOCK), result, tries = 0;
    do {
        result = attempt(client, &address);
        nap(5);
    } while (result < 0 && (errno == EINPROGRESS || errno == EALREADY || errno == EINTR) && tries++ < 1000);
    say_result("in_the_end", result);
    say_result("then", attempt(client, &address));
}

CASE(refused_blocking)
{
    struct address none = where(nobody()), address;
    int client = make(SOCK_STREAM);
    say_result("connect", attempt(client, &none));
    say("error", "%s", error_name(socket_error(client)));
    listening(8, &address);
    say_result("elsewhere_with_the_same_socket", attempt(client, &address));
}

CASE(refused_nonblocking)
{
    struct address none = where(nobody());
    int client = make(SOCK_STREAM | SOCK_NONBLOCK);
    say_result("connect", attempt(client, &none));
    say_events("poll", await(client, POLLIN | POLLOUT | POLLRDHUP));
    say("error", "%s", error_name(socket_error(client)));
    say("error_again", "%s", error_name(socket_error(client)));
    say_events("poll_then", at_once(client, POLLIN | POLLOUT | POLLRDHUP));
}

CASE(refused_nonblocking_asked_by_connect)
{
    struct address none = where(nobody());
    int client = make(SOCK_STREAM | SOCK_NONBLOCK);
    say_result("connect", attempt(client, &none));
    await(client, POLLOUT);
    say_result("again", attempt(client, &none));
    say("error", "%s", error_name(socket_error(client)));
}

CASE(refused_nonblocking_asked_by_write)
{
    struct address none = where(nobody());
    int client = make(SOCK_STREAM | SOCK_NONBLOCK);
    ignore_sigpipe();
    attempt(client, &none);
    await(client, POLLOUT);
    say_result("write", write(client, "x", 1));
    say_result("write_again", write(client, "x", 1));
}

CASE(refused_nonblocking_asked_by_read)
{
    struct address none = where(nobody());
    int client = make(SOCK_STREAM | SOCK_NONBLOCK);
    char octet;
    attempt(client, &none);
    await(client, POLLIN);
    say_result("read", read(client, &octet, 1));
    say_result("read_again", read(client, &octet, 1));
}

/* A listener whose queue is full answers no more: the connection stays on its way. */
static int pending(struct address *address, int *listener)
{
    *listener = listening(0, address);
    connected_to(address);
    int client = make(SOCK_STREAM | SOCK_NONBLOCK);
    attempt(client, address);
    return client;
}

CASE(pending_connection)
{
    struct address address;
    int listener, client = pending(&address, &listener);
    say_events("poll", still(client, POLLIN | POLLOUT));
    say_result("again", attempt(client, &address));
    say("error", "%s", error_name(socket_error(client)));
    char octet;
    say_result("read", read(client, &octet, 1));
    say_result("write", send(client, "x", 1, MSG_NOSIGNAL));
    struct address name = {.length = sizeof name.storage};
    say_result("getpeername",
               getpeername(client, (struct sockaddr *)&name.storage, &name.length));
    accepted(listener);
    say_events("once_there_is_room", await(client, POLLOUT));
    say("error_then", "%s", error_name(socket_error(client)));
    int server = accepted(listener);
    say_result("write_then", write(client, "abc", 3));
    char text[4] = "";
    read_all(server, text, 3);
    say("text", "%s", text);
}

CASE(pending_connection_is_closed)
{
    struct address address;
    int listener, client = pending(&address, &listener);
    close(client);
    accepted(listener);
    set_nonblocking(listener, true);
    nap(100);
    int other = connected_to(&address);
    write(other, "o", 1);
    char octet = '-';
    int server = accepted(listener);
    set_nonblocking(server, false);
    read(server, &octet, 1);
    say("accepted", octet == 'o' ? "the other" : "the closed one");
}

CASE_WITH(connect_times_out_by_so_sndtimeo, CALM)
{
    struct address address;
    int listener = listening(0, &address);
    connected_to(&address);
    int client = make(SOCK_STREAM);
    struct timeval soon = {0, 100000};
    say_result("set", setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &soon, sizeof soon));
    say_result("connect", attempt(client, &address));
    accepted(listener);
    say_events("poll", await(client, POLLOUT));
}

CASE(before_connect)
{
    int client = make(SOCK_STREAM);
    char octet;
    ignore_sigpipe();
    say_events("poll", at_once(client, POLLIN | POLLOUT | POLLRDHUP));
    say_result("recv", recv(client, &octet, 1, MSG_DONTWAIT));
    say_result("write", write(client, "x", 1));
    say_result("send", send(client, "x", 1, MSG_NOSIGNAL));
    say_result("shutdown", shutdown(client, SHUT_RDWR));
    say_result("accept", accept(client, NULL, NULL));
    struct address name = {.length = sizeof name.storage};
    say_result("getpeername",
               getpeername(client, (struct sockaddr *)&name.storage, &name.length));
}

CASE(write_before_connect_raises_sigpipe)
{
    int client = make(SOCK_STREAM);
    count_signal(SIGPIPE, 0);
    say_result("write", write(client, "x", 1));
    say("signals", "%d", signals_seen);
}

CASE(bound_client)
{
    struct address address, own = here(0), name = {.length = sizeof name.storage};
    int listener = listening(8, &address), client = make(SOCK_STREAM);
    say_result("bind", bind(client, (struct sockaddr *)&own.storage, own.length));
    getsockname(client, (struct sockaddr *)&name.storage, &name.length);
    int port = port_of(&name);
    say_result("connect", attempt(client, &address));
    name.length = sizeof name.storage;
    int server = accept(listener, (struct sockaddr *)&name.storage, &name.length);
    say("port_seen", port_of(&name) == port ? "that one" : "another");
    close(server);
}

CASE(disconnect_by_af_unspec)
{
    struct address address;
    struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
    int listener = listening(8, &address), client = connected_to(&address);
    int server = accepted(listener);
    say_result("connect", connect(client, &nowhere, sizeof nowhere));
    struct address name = {.length = sizeof name.storage};
    say_result("getpeername",
               getpeername(client, (struct sockaddr *)&name.storage, &name.length));
    char octet;
    await(server, POLLIN);
    say_result("peer_reads", read(server, &octet, 1));
    say_result("connect_again", attempt(client, &address));
}

CASE(connect_of_a_listener)
{
    struct address address, other;
    int listener = listening(8, &address);
    listening(8, &other);
    say_result("connect", attempt(listener, &other));
}

CASE(listen_of_a_connected_socket)
{
    int client, server;
    connected(&client, &server);
    say_result("listen", listen(client, 5));
    say_result("bind", bind(client, (struct sockaddr *)&(struct address[]){here(0)}->storage,
                            here(0).length));
}

CASE(many_one_after_another)
{
    struct address address;
    int listener = listening(8, &address), good = 0, highest = 0;
    for (int i = 0; i < 100; i++) {
        int client = connected_to(&address), server = accepted(listener);
        char octet = 0;
        write(client, "q", 1);
        good += read(server, &octet, 1) == 1 && octet == 'q';
        highest = server > highest ? server : highest;
        close(client);
        close(server);
    }
    say("good", "%d", good);
    say("highest_descriptor_above_the_listener", "%d", highest - listener);
}

CASE(many_at_once)
{
    enum { MANY = 60 };
    struct address address;
    int listener = listening(128, &address), clients[MANY], good = 0;
    for (int i = 0; i < MANY; i++) {
        clients[i] = make(SOCK_STREAM | SOCK_NONBLOCK);
        attempt(clients[i], &address);
    }
    for (int i = 0; i < MANY; i++) {
        await(clients[i], POLLOUT);
        good += socket_error(clients[i]) == 0 && write(clients[i], &i, sizeof i) == sizeof i;
    }
    int sum = 0;
    for (int i = 0; i < MANY; i++) {
        int server = accepted(listener), number = 0;
        read_all(server, &number, sizeof number);
        sum += number;
    }
    say("connected", "%d", good);
    say("sum", "%d", sum);
}
