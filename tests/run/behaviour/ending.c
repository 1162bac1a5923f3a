/* How connections end: half-close, both, reset, broken pipes, lingering. */
#include "behaviour.h"

static void linger(int fd, int seconds)
{
    struct linger hard = {1, seconds};
    if (setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard))
        give_up("SO_LINGER");
}

CASE(half_close)
{
    int client, server;
    char room[8];
    connected(&client, &server);
    ignore_sigpipe();
    say_result("shutdown", shutdown(client, SHUT_WR));
    say_events("own_poll", at_once(client, POLLIN | POLLOUT | POLLRDHUP));
    say_events("poll", await(server, POLLIN | POLLRDHUP));
    say_result("peer_reads", read(server, room, 8));
    say_result("peer_writes", write(server, "late", 4));
    say_result("read", (long)read_all(client, room, 4));
    say_result("write", write(client, "x", 1));
    close(server);
    say_result("end", (long)read_all(client, room, 1));
    say_events("poll_at_the_end", await(client, POLLHUP));
}

CASE(write_after_shutdown_raises_sigpipe)
{
    int client, server;
    connected(&client, &server);
    count_signal(SIGPIPE, 0);
    shutdown(client, SHUT_WR);
    say_result("write", write(client, "x", 1));
    say("signals", "%d", signals_seen);
    say_result("send", send(client, "x", 1, MSG_NOSIGNAL));
    say("signals_then", "%d", signals_seen);
}

CASE(shutdown_for_reading)
{
    int client, server;
    char room[8];
    connected(&client, &server);
    say_result("shutdown", shutdown(client, SHUT_RD));
    say_result("read", read(client, room, 8));
    say_events("poll", at_once(client, POLLIN | POLLOUT | POLLRDHUP));
    say_result("write", write(client, "still", 5));
    say_result("peer_reads", (long)read_all(server, room, 5));
}

CASE(shutdown_twice)
{
    int client, server;
    connected(&client, &server);
    say_result("write_side", shutdown(client, SHUT_WR));
    say_result("write_side_again", shutdown(client, SHUT_WR));
    say_result("both", shutdown(client, SHUT_RDWR));
    say_result("nonsense", shutdown(client, 77));
    say_result("bad_descriptor", shutdown(999, SHUT_WR));
}

CASE(shutdown_both_wakes_a_reader)
{
    int client, server;
    char octet;
    connected(&client, &server);
    pid_t child = fork();
    if (child == 0) {
        nap(80);
        shutdown(client, SHUT_RDWR);
        exit(0);
    }
    say_result("read", read(client, &octet, 1));
    ended(child);
    say_events("poll", at_once(client, POLLIN | POLLOUT | POLLRDHUP));
    say_result("peer", (long)read_all(server, &octet, 1));
}

CASE(peer_closes)
{
    int client, server;
    char room[8];
    connected(&client, &server);
    write(server, "bye", 3);
    close(server);
    say_events("poll", await(client, POLLRDHUP));
    say_result("read", (long)read_all(client, room, 3));
    say_result("end", read(client, room, 8));
    say_result("end_again", read(client, room, 8));
    say("error", "%s", error_name(socket_error(client)));
    say_events("poll_then", at_once(client, POLLIN | POLLOUT | POLLRDHUP));
}

CASE(write_to_a_peer_that_has_closed)
{
    int client, server;
    char octet;
    connected(&client, &server);
    ignore_sigpipe();
    close(server);
    read(client, &octet, 1);
    say_result("write", write(client, "x", 1));
    await(client, POLLHUP);
    say_result("write_again", write(client, "x", 1));
    say_result("read", read(client, &octet, 1));
}

CASE(closed_with_unread_data_resets)
{
    int client, server;
    char octet;
    connected(&client, &server);
    ignore_sigpipe();
    write(client, "unread", 6);
    await_octets(server, 6);
    close(server);
    say_events("poll", await(client, POLLERR | POLLHUP));
    say_result("read", read(client, &octet, 1));
    say_result("read_again", read(client, &octet, 1));
    say_result("write", write(client, "x", 1));
    say_events("poll_then", at_once(client, POLLIN | POLLOUT | POLLRDHUP));
}

CASE(so_linger_zero_resets)
{
    int client, server;
    connected(&client, &server);
    linger(server, 0);
    close(server);
    await(client, POLLHUP);
    say("error", "%s", error_name(socket_error(client)));
    say("error_again", "%s", error_name(socket_error(client)));
    char octet;
    say_result("read", read(client, &octet, 1));
}

CASE(reset_behind_data)
{
    int client, server;
    char room[8];
    connected(&client, &server);
    write(server, "first", 5);
    await_octets(client, 5);
    linger(server, 0);
    close(server);
    await(client, POLLHUP);
    say_result("read", read(client, room, 8));
    say_result("then", read(client, room, 8));
    say_result("at_last", read(client, room, 8));
}

CASE(reset_wakes_a_blocked_reader)
{
    int client, server;
    char octet;
    connected(&client, &server);
    linger(server, 0);
    pid_t child = fork();
    if (child == 0) {
        close(client);
        nap(80);
        exit(0); /* the last one that has it */
    }
    close(server);
    say_result("read", read(client, &octet, 1));
    ended(child);
}

CASE_WITH(reset_wakes_a_blocked_writer, CALM)
{
    int client, server;
    connected(&client, &server);
    ignore_sigpipe();
    fill(client);
    set_nonblocking(client, false);
    linger(server, 0);
    pid_t child = fork();
    if (child == 0) {
        close(client);
        nap(80);
        exit(0);
    }
    close(server);
    say_result("write", write(client, "x", 1));
    ended(child);
}

/* It reads nothing meanwhile, and what was sent to it stays where it is. */
CASE(writer_that_never_reads_finds_that_its_peer_has_left)
{
    int client, server;
    connected(&client, &server);
    ignore_sigpipe();
    write(server, "unread", 6);
    say("there", "%s", await_octets(client, 6) ? "6" : "fewer");
    fill(client);
    close(client);
    set_nonblocking(server, true);
    static const char zeros[65536];
    ssize_t put;
    do
        put = write(server, zeros, sizeof zeros);
    while (put > 0 || (errno == EAGAIN && await(server, POLLOUT)));
    say_result("write", put);
    say_result("write_again", write(server, "x", 1));
}

CASE(killed_peer_ends_the_stream)
{
    struct address address;
    int listener = listening(8, &address);
    pid_t child = fork();
    if (child == 0) {
        int client = connected_to(&address);
        write(client, "here", 4);
        for (;;)
            pause();
    }
    int server = accepted(listener);
    char room[8];
    say_result("read", (long)read_all(server, room, 4));
    kill(child, SIGKILL);
    ended(child);
    say_result("end", read(server, room, 8));
}

CASE(data_then_close_arrives_whole)
{
    enum { MUCH = 1 << 20 };
    int client, server;
    connected(&client, &server);
    pid_t child = fork();
    if (child == 0) {
        char *octets = calloc(1, MUCH);
        close(server);
        exit(write_all(client, octets, MUCH) == MUCH ? 0 : 1);
    }
    close(client);
    char *room = malloc(MUCH + 1);
    say("octets", "%zu", read_all(server, room, MUCH + 1));
    say("writer", "%d", ended(child));
}

CASE(lingering_close_delivers)
{
    int client, server;
    char room[8] = "";
    connected(&client, &server);
    linger(client, 5);
    write(client, "tail", 4);
    say_result("close", close(client));
    say_result("read", (long)read_all(server, room, 8));
}

CASE(simultaneous_close)
{
    int client, server;
    char octet;
    connected(&client, &server);
    shutdown(client, SHUT_WR);
    shutdown(server, SHUT_WR);
    say_result("client", read(client, &octet, 1));
    say_result("server", read(server, &octet, 1));
    say_events("poll", await(client, POLLHUP));
}
