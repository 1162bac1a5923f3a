/* Listeners: their queue, its readiness, shutdown, backlog, and what accepted sockets inherit. */
#include "behaviour.h"

CASE(accept_queue)
{
    struct address address;
    int listener = listening(8, &address);
    say_events("idle", at_once(listener, POLLIN | POLLOUT));
    int clients[3];
    for (int i = 0; i < 3; i++)
        clients[i] = connected_to(&address);
    for (int i = 0; i < 3; i++) {
        say_events("poll", await(listener, POLLIN | POLLOUT));
        int server = accepted(listener);
        write(clients[i], "abc" + i, 1);
        char octet = 0;
        read(server, &octet, 1);
        say("order", "%c", octet);
    }
    say_events("empty", at_once(listener, POLLIN | POLLOUT));
}

CASE(nonblocking_accept)
{
    struct address address;
    int listener = listening(8, &address);
    set_nonblocking(listener, true);
    say_result("empty", accept(listener, NULL, NULL));
    connected_to(&address);
    await(listener, POLLIN);
    int server = accept(listener, NULL, NULL);
    say("accept", "%s", server >= 0 ? "a socket" : error_name(errno));
    say("inherits_nonblocking", "%d", !!(fcntl(server, F_GETFL) & O_NONBLOCK));
    say_result("then", accept(listener, NULL, NULL));
}

CASE(accept4_flags)
{
    struct address address;
    int listener = listening(8, &address);
    connected_to(&address);
    await(listener, POLLIN);
    say_result("unknown_flag", accept4(listener, NULL, NULL, 1));
    int server = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    say("nonblocking", "%d", !!(fcntl(server, F_GETFL) & O_NONBLOCK));
    say("cloexec", "%d", !!(fcntl(server, F_GETFD) & FD_CLOEXEC));
}

CASE(accept_of_what_is_no_listener)
{
    int client, server;
    connected(&client, &server);
    say_result("connected", accept(client, NULL, NULL));
    say_result("bad_descriptor", accept(999, NULL, NULL));
    int ends[2];
    if (pipe(ends))
        give_up("pipe");
    say_result("pipe", accept(ends[0], NULL, NULL));
}

CASE_WITH(accept_times_out_by_so_rcvtimeo, CALM)
{
    struct address address;
    int listener = listening(8, &address);
    struct timeval soon = {0, 100000};
    say_result("set", setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof soon));
    say_result("accept", accept(listener, NULL, NULL));
    connected_to(&address);
    say("then", "%s", accept(listener, NULL, NULL) >= 0 ? "a socket" : error_name(errno));
}

CASE(closed_before_it_was_accepted)
{
    struct address address;
    int listener = listening(8, &address), client = connected_to(&address);
    write(client, "last words", 10);
    close(client);
    nap(50);
    int server = accepted(listener);
    char text[16] = "";
    say_result("read", (long)read_all(server, text, sizeof text));
    say("text", "%s", text);
}

CASE(reset_before_it_was_accepted)
{
    struct address address;
    struct linger hard = {1, 0};
    int listener = listening(8, &address), client = connected_to(&address);
    setsockopt(client, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    close(client);
    nap(100);
    int server = accepted(listener);
    char octet;
    await(server, POLLIN);
    say_result("read", read(server, &octet, 1));
    say_result("read_again", read(server, &octet, 1));
}

CASE(data_before_accept)
{
    struct address address;
    int listener = listening(8, &address), client = connected_to(&address);
    write(client, "early", 5);
    int server = accepted(listener);
    char text[8] = "";
    read_all(server, text, 5);
    say("text", "%s", text);
}

CASE(full_backlog)
{
    enum { CLIENTS = 3 };
    struct address address;
    int listener = listening(1, &address), clients[CLIENTS], now = 0, later = 0;
    for (int i = 0; i < CLIENTS; i++) {
        clients[i] = make(SOCK_STREAM | SOCK_NONBLOCK);
        if (connect(clients[i], (struct sockaddr *)&address.storage, address.length) &&
            errno != EINPROGRESS)
            give_up("connect");
        if (i < 2)
            await(clients[i], POLLOUT);
    }
    nap(100);
    for (int i = 0; i < CLIENTS; i++)
        now += (at_once(clients[i], POLLOUT) & POLLOUT) != 0;
    say("connected", "%d", now);
    for (int i = 0; i < CLIENTS; i++)
        accepted(listener);
    for (int i = 0; i < CLIENTS; i++)
        later += await(clients[i], POLLOUT) == POLLOUT && socket_error(clients[i]) == 0;
    say("connected_in_the_end", "%d", later);
}

CASE(listen_again_changes_the_backlog)
{
    struct address address;
    int listener = listening(8, &address);
    say_result("listen", listen(listener, 20));
    say_result("negative", listen(listener, -1));
    connected_to(&address);
    accepted(listener);
}

CASE(listen_without_bind)
{
    int listener = make(SOCK_STREAM);
    say_result("listen", listen(listener, 5));
    struct address name = {.length = sizeof name.storage};
    getsockname(listener, (struct sockaddr *)&name.storage, &name.length);
    say("address", "%s", symbol(&name));
    say("port", port_of(&name) ? "some" : "none");
    struct address target = where(port_of(&name));
    connected_to(&target);
    say("accept", accepted(listener) >= 0 ? "a socket" : "no");
}

CASE(shutdown_of_a_listener)
{
    struct address address;
    int listener = listening(8, &address);
    say_result("shutdown", shutdown(listener, SHUT_RDWR));
    say_result("accept", accept(listener, NULL, NULL));
    int client = make(SOCK_STREAM);
    say_result("connect", connect(client, (struct sockaddr *)&address.storage, address.length));
    say_result("listen_again", listen(listener, 5));
}

static void *shut(void *argument)
{
    nap(100);
    shutdown(*(int *)argument, SHUT_RDWR);
    return NULL;
}

CASE(shutdown_wakes_accept)
{
    struct address address;
    int listener = listening(8, &address);
    pthread_t thread;
    pthread_create(&thread, NULL, shut, &listener);
    say_result("accept", accept(listener, NULL, NULL));
    pthread_join(thread, NULL);
}

CASE(shutdown_wakes_poll_of_a_listener)
{
    struct address address;
    int listener = listening(8, &address);
    pthread_t thread;
    pthread_create(&thread, NULL, shut, &listener);
    short found = await(listener, POLLIN);
    say("hup", "%d", !!(found & POLLHUP));
    pthread_join(thread, NULL);
}

CASE(a_closed_listener_resets_what_nobody_accepted)
{
    struct address address;
    int listener = listening(8, &address), client = connected_to(&address);
    char octet;
    close(listener);
    await(client, POLLIN);
    say_result("read", read(client, &octet, 1));
    int other = make(SOCK_STREAM);
    say_result("connect", connect(other, (struct sockaddr *)&address.storage, address.length));
}

CASE(accepted_socket_outlives_the_listener)
{
    int client, server; /* the listener is closed in there */
    connected(&client, &server);
    char text[4] = "";
    write(server, "yes", 3);
    read_all(client, text, 3);
    say("text", "%s", text);
}

CASE(io_of_a_listener)
{
    struct address address;
    int listener = listening(8, &address);
    char octet;
    ignore_sigpipe();
    say_result("recv", recv(listener, &octet, 1, MSG_DONTWAIT));
    say_result("send", send(listener, "x", 1, MSG_DONTWAIT));
    connected_to(&address);
    await(listener, POLLIN);
    set_nonblocking(listener, true);
    say("accept", accept(listener, NULL, NULL) >= 0 ? "a socket" : "lost");
    say_events("then", at_once(listener, POLLIN));
}

CASE(options_that_accepted_sockets_inherit)
{
    struct address address;
    int listener = listening(8, &address), on = 1;
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(listener, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    connected_to(&address);
    int server = accepted(listener), value = -1;
    socklen_t length = sizeof value;
    getsockopt(server, IPPROTO_TCP, TCP_NODELAY, &value, &length);
    say("nodelay", "%d", value);
    getsockopt(server, SOL_SOCKET, SO_KEEPALIVE, &value, &length);
    say("keepalive", "%d", value);
    getsockopt(server, SOL_SOCKET, SO_ACCEPTCONN, &value, &length);
    say("acceptconn", "%d", value);
}
