/* poll, select and epoll, by level and by edge; signals and what they interrupt. */
#include "behaviour.h"

static uint32_t events_of(int ep, int milliseconds)
{
    struct epoll_event event = {0};
    if (!await_for(ep, POLLIN, milliseconds)) /* an epoll descriptor can be polled itself */
        return 0;
    return epoll_wait(ep, &event, 1, 0) == 1 ? event.events : 0;
}

static int watched(int fd, uint32_t events)
{
    int ep = epoll_create1(0);
    struct epoll_event event = {.events = events};
    if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event))
        give_up("epoll_ctl");
    return ep;
}

CASE(select_of_a_stream)
{
    int client, server;
    connected(&client, &server);
    struct timeval none = {0, 0};
    fd_set in, out;
    for (int i = 0; i < 2; i++) {
        FD_ZERO(&in);
        FD_ZERO(&out);
        FD_SET(server, &in);
        FD_SET(server, &out);
        say_result("select", select(server + 1, &in, &out, NULL, &none));
        say("readable", "%d", !!FD_ISSET(server, &in));
        say("writable", "%d", !!FD_ISSET(server, &out));
        write(client, "x", 1);
        await(server, POLLIN);
    }
}

CASE(epoll_by_level)
{
    int client, server;
    char octet;
    connected(&client, &server);
    int ep = watched(server, EPOLLIN | EPOLLRDHUP);
    say_events("idle", (short)events_of(ep, 50));
    write(client, "ab", 2);
    await_octets(server, 2);
    say_events("data", (short)events_of(ep, 5000));
    read(server, &octet, 1);
    say_events("what_is_left", (short)events_of(ep, 5000));
    read(server, &octet, 1);
    say_events("empty", (short)events_of(ep, 50));
    shutdown(client, SHUT_WR);
    say_events("end", (short)events_of(ep, 5000));
}

CASE(epoll_by_edge)
{
    int client, server;
    char octet;
    connected(&client, &server);
    int ep = watched(server, EPOLLIN | EPOLLET);
    say_events("idle", (short)events_of(ep, 50));
    write(client, "a", 1);
    say_events("first", (short)events_of(ep, 5000));
    say_events("no_second_time", (short)events_of(ep, 50));
    write(client, "b", 1);
    say_events("more", (short)events_of(ep, 5000));
    read(server, &octet, 1);
    read(server, &octet, 1);
    write(client, "c", 1);
    say_events("after_reading", (short)events_of(ep, 5000));
}

CASE(epoll_by_edge_tells_of_room)
{
    int client, server;
    connected(&client, &server);
    size_t put = fill(client);
    int ep = watched(client, EPOLLOUT | EPOLLET);
    say_events("full", (short)events_of(ep, 50));
    char *room = malloc(put);
    read_all(server, room, put);
    say_events("room", (short)events_of(ep, 10000));
}

CASE(epoll_oneshot)
{
    int client, server;
    connected(&client, &server);
    int ep = watched(server, EPOLLIN | EPOLLONESHOT);
    write(client, "a", 1);
    say_events("first", (short)events_of(ep, 5000));
    say_events("disarmed", (short)events_of(ep, 50));
    struct epoll_event event = {.events = EPOLLIN};
    say_result("arm", epoll_ctl(ep, EPOLL_CTL_MOD, server, &event));
    say_events("armed", (short)events_of(ep, 5000));
}

CASE(epoll_by_edge_from_before_connect)
{
    struct address address;
    int listener = listening(8, &address), client = make(SOCK_STREAM | SOCK_NONBLOCK);
    int ep = watched(client, EPOLLIN | EPOLLOUT | EPOLLET);
    events_of(ep, 50); /* of a socket that is not connected */
    connect(client, (struct sockaddr *)&address.storage, address.length);
    say("writable", "%d", !!(events_of(ep, 5000) & EPOLLOUT));
    say("error", "%s", error_name(socket_error(client)));
    int server = accepted(listener);
    write(server, "x", 1);
    short seen = 0;
    for (int i = 0; i < 5 && !(seen & POLLIN); i++)
        seen |= (short)events_of(ep, 2000);
    say("readable", "%d", !!(seen & POLLIN));
}

CASE(epoll_of_a_refused_connection)
{
    struct address none = where(nobody());
    int client = make(SOCK_STREAM | SOCK_NONBLOCK);
    connect(client, (struct sockaddr *)&none.storage, none.length);
    await(client, POLLOUT);
    int ep = watched(client, EPOLLIN | EPOLLOUT | EPOLLET);
    say_events("events", (short)events_of(ep, 5000));
    say("error", "%s", error_name(socket_error(client)));
}

CASE(epoll_by_edge_of_a_listener)
{
    struct address address;
    int listener = listening(8, &address);
    set_nonblocking(listener, true);
    int ep = watched(listener, EPOLLIN | EPOLLET);
    say_events("idle", (short)events_of(ep, 50));
    connected_to(&address);
    say_events("first", (short)events_of(ep, 5000));
    connected_to(&address);
    say_events("second_without_accept", (short)events_of(ep, 5000));
    int got = 0;
    while (accept(listener, NULL, NULL) >= 0)
        got++;
    say("accepted", "%d", got);
    say("then", "%s", error_name(errno));
    connected_to(&address);
    say_events("third", (short)events_of(ep, 5000));
}

CASE(epoll_by_level_of_a_listener)
{
    struct address address;
    int listener = listening(8, &address);
    int ep = watched(listener, EPOLLIN);
    connected_to(&address);
    connected_to(&address);
    say_events("two", (short)events_of(ep, 5000));
    accepted(listener);
    say_events("one", (short)events_of(ep, 5000));
    accepted(listener);
    say_events("none", (short)events_of(ep, 50));
}

CASE(closing_takes_out_of_epoll)
{
    int client, server;
    connected(&client, &server);
    int ep = watched(server, EPOLLIN);
    close(server);
    say_events("events", (short)events_of(ep, 50));
    char octet;
    say_result("peer", (long)read_all(client, &octet, 1));
}

CASE_WITH(signals_interrupt_calls, CALM)
{
    struct address address;
    int client, server, listener = listening(8, &address);
    char octet;
    connected(&client, &server);
    count_signal(SIGALRM, 0);
    alarm_in(80);
    say_result("accept", accept(listener, NULL, NULL));
    alarm_in(80);
    say_result("read", read(client, &octet, 1));
    alarm_in(80);
    struct pollfd entry = {client, POLLIN, 0};
    say_result("poll", poll(&entry, 1, 5000));
    say("signals", "%d", signals_seen);
}

CASE_WITH(signals_interrupt_connect, CALM)
{
    struct address address;
    int listener = listening(0, &address);
    connected_to(&address);
    int client = make(SOCK_STREAM);
    count_signal(SIGALRM, 0);
    alarm_in(80);
    say_result("connect", connect(client, (struct sockaddr *)&address.storage, address.length));
    say_result("again_nonblocking",
               (set_nonblocking(client, true),
                connect(client, (struct sockaddr *)&address.storage, address.length)));
    accepted(listener);
    say_events("poll", await(client, POLLOUT));
    say("error", "%s", error_name(socket_error(client)));
}

CASE_WITH(sa_restart_goes_on, CALM)
{
    struct address address;
    int listener = listening(8, &address);
    char octet;
    count_signal(SIGALRM, SA_RESTART);
    pid_t child = fork();
    if (child == 0) {
        nap(200);
        int client = connected_to(&address);
        nap(200);
        write(client, "x", 1);
        exit(0);
    }
    alarm_in(80);
    int server = accept(listener, NULL, NULL);
    say("accept", "%s", server >= 0 ? "a socket" : error_name(errno));
    alarm_in(80);
    say_result("read", read(server, &octet, 1));
    say("signals", "%d", signals_seen);
    ended(child);
}

CASE_WITH(receive_with_a_timeout_is_not_restarted, CALM)
{
    int client, server;
    struct timeval later = {5, 0};
    char octet;
    connected(&client, &server);
    setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &later, sizeof later);
    count_signal(SIGALRM, SA_RESTART);
    alarm_in(80);
    say_result("read", read(client, &octet, 1));
}

CASE_WITH(connections_under_a_storm_of_signals, CALM)
{
    struct address address;
    int listener = listening(8, &address), good = 0;
    struct itimerval often = {{0, 1000}, {0, 1000}}, never = {{0, 0}, {0, 0}};
    count_signal(SIGALRM, SA_RESTART);
    setitimer(ITIMER_REAL, &often, NULL);
    for (int i = 0; i < 100; i++) {
        int client = make(SOCK_STREAM);
        if (connect(client, (struct sockaddr *)&address.storage, address.length))
            give_up("connect");
        int server = accept(listener, NULL, NULL);
        char octet = 0;
        if (server < 0)
            give_up("accept");
        write(client, "q", 1);
        good += read(server, &octet, 1) == 1 && octet == 'q';
        close(client);
        close(server);
    }
    setitimer(ITIMER_REAL, &never, NULL);
    say("good", "%d", good);
}

CASE_WITH(reconnections_under_a_storm_of_signals, CALM)
{
    struct address address;
    struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
    int listener = listening(8, &address), good = 0;
    struct itimerval often = {{0, 500}, {0, 500}}, never = {{0, 0}, {0, 0}};
    int client = make(SOCK_STREAM), copy = dup(client);
    count_signal(SIGALRM, SA_RESTART);
    setitimer(ITIMER_REAL, &often, NULL);
    for (int i = 0; i < 60; i++) {
        if (connect(client, (struct sockaddr *)&address.storage, address.length))
            give_up("connect");
        int server = accept(listener, NULL, NULL);
        char octet = 0;
        if (server < 0)
            give_up("accept");
        write(copy, "q", 1);
        good += read(server, &octet, 1) == 1 && octet == 'q';
        if (connect(client, &nowhere, sizeof nowhere))
            give_up("connect to nowhere");
        close(server);
    }
    setitimer(ITIMER_REAL, &never, NULL);
    say("good", "%d", good);
}

CASE(asynchronous_io_raises_sigio)
{
    int client, server;
    connected(&client, &server);
    count_signal(SIGIO, SA_RESTART);
    fcntl(server, F_SETOWN, getpid());
    say_result("set", fcntl(server, F_SETFL, fcntl(server, F_GETFL) | O_ASYNC));
    write(client, "x", 1);
    for (int i = 0; i < 1000 && !signals_seen; i++)
        nap(5);
    say("signals", "%s", signals_seen ? "some" : "none");
}
