/* Octets of a connected stream: how much a call moves, peeking, urgent data, full buffers. */
#include "behaviour.h"

#include <sys/sendfile.h>

enum { LARGE = 3 << 20 };

static unsigned char *pattern(size_t length)
{
    unsigned char *octets = malloc(length);
    uint32_t state = 1;
    for (size_t i = 0; i < length; i++) {
        state = state * 1664525 + 1013904223;
        octets[i] = (unsigned char)(state >> 24);
    }
    return octets;
}

struct direction {
    int from, to;
    const unsigned char *octets;
    size_t wrong, got;
};

static void *sender(void *argument)
{
    struct direction *direction = argument;
    write_all(direction->from, direction->octets, LARGE);
    shutdown(direction->from, SHUT_WR);
    return NULL;
}

static void *receiver(void *argument)
{
    struct direction *direction = argument;
    unsigned char *room = malloc(LARGE + 1);
    direction->got = read_all(direction->to, room, LARGE + 1);
    direction->wrong = memcmp(room, direction->octets, LARGE) != 0;
    free(room);
    return NULL;
}

static void move(bool both, bool nonblocking)
{
    int client, server;
    connected(&client, &server);
    set_nonblocking(client, nonblocking);
    set_nonblocking(server, nonblocking);
    struct direction ways[2] = {{client, server, pattern(LARGE), 1, 0},
                                {server, client, pattern(LARGE), 1, 0}};
    pthread_t threads[4];
    for (int i = 0; i <= both; i++) {
        pthread_create(&threads[2 * i], NULL, sender, &ways[i]);
        pthread_create(&threads[2 * i + 1], NULL, receiver, &ways[i]);
    }
    for (int i = 0; i <= both; i++) {
        pthread_join(threads[2 * i], NULL);
        pthread_join(threads[2 * i + 1], NULL);
        say("octets", "%zu", ways[i].got);
        say("as_sent", "%s", ways[i].wrong ? "no" : "yes");
    }
}

CASE(much_data)
{
    move(false, false);
}

CASE(much_data_both_ways)
{
    move(true, false);
}

CASE(much_data_both_ways_nonblocking)
{
    move(true, true);
}

CASE(ping_pong)
{
    int client, server, good = 0;
    connected(&client, &server);
    for (int i = 0; i < 50; i++) {
        char out[64], in[64];
        memset(out, i, sizeof out);
        write_all(client, out, sizeof out);
        read_all(server, in, sizeof in);
        write_all(server, in, sizeof in);
        memset(in, 0, sizeof in);
        read_all(client, in, sizeof in);
        good += !memcmp(out, in, sizeof in);
    }
    say("good", "%d", good);
}

CASE(full_send_buffer)
{
    int client, server;
    connected(&client, &server);
    size_t put = fill(client);
    say("some", "%s", put > 0 ? "yes" : "no");
    say_events("poll", at_once(client, POLLOUT));
    say_result("write", send(client, "x", 1, MSG_DONTWAIT));
    char *room = malloc(put);
    size_t got = read_all(server, room, put);
    say("all_arrived", "%s", got == put ? "yes" : "no");
    say_events("poll_then", await(client, POLLOUT));
    say_result("write_then", write(client, "x", 1));
}

CASE(blocked_writer_goes_on)
{
    int client, server;
    connected(&client, &server);
    pid_t child = fork();
    if (child == 0) {
        char *octets = calloc(1, LARGE);
        close(server);
        exit(write(client, octets, LARGE) == LARGE ? 0 : 1);
    }
    close(client);
    nap(50);
    char *room = malloc(LARGE + 1);
    say("octets", "%zu", read_all(server, room, LARGE + 1));
    say("writer", "%d", ended(child));
}

CASE_WITH(send_times_out_by_so_sndtimeo, CALM)
{
    int client, server;
    connected(&client, &server);
    fill(client);
    set_nonblocking(client, false);
    struct timeval soon = {0, 100000};
    say_result("set", setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &soon, sizeof soon));
    say_result("write", write(client, "x", 1));
}

CASE_WITH(receive_times_out_by_so_rcvtimeo, CALM)
{
    int client, server;
    connected(&client, &server);
    struct timeval soon = {0, 100000}, found = {9, 9};
    socklen_t length = sizeof found;
    char octet;
    say_result("set", setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof soon));
    say_result("get", getsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &found, &length));
    say("value", "%ld.%06ld", (long)found.tv_sec, (long)found.tv_usec);
    say_result("read", read(client, &octet, 1));
    write(server, "y", 1);
    say_result("read_then", read(client, &octet, 1));
}

CASE(nothing_to_read)
{
    int client, server;
    char octet;
    connected(&client, &server);
    say_result("dontwait", recv(client, &octet, 1, MSG_DONTWAIT));
    set_nonblocking(client, true);
    say_result("nonblocking", read(client, &octet, 1));
    say_result("peek", recv(client, &octet, 1, MSG_PEEK));
    int on = 0;
    say_result("fionbio", ioctl(client, FIONBIO, &on));
    say("flag", "%d", !!(fcntl(client, F_GETFL) & O_NONBLOCK));
    say_result("no_room", recv(client, &octet, 0, MSG_DONTWAIT));
}

CASE(error_queue)
{
    int client, server;
    connected(&client, &server);
    char octet;
    struct iovec part = {&octet, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    say_result("recvmsg", recvmsg(client, &message, MSG_ERRQUEUE | MSG_TRUNC));
    say_result("recv", recv(client, &octet, 1, MSG_ERRQUEUE));
}

CASE(peeking)
{
    int client, server;
    char text[8] = "";
    connected(&client, &server);
    write(client, "abcdef", 6);
    say("there", "%s", await_octets(server, 6) ? "6" : "fewer");
    say_result("peek", recv(server, text, 3, MSG_PEEK));
    say_result("peek_more", recv(server, text, 8, MSG_PEEK));
    say("text", "%.6s", text);
    int left = -1;
    ioctl(server, FIONREAD, &left);
    say("fionread", "%d", left);
    say_result("read", read(server, text, 4));
    ioctl(server, FIONREAD, &left);
    say("fionread_then", "%d", left);
}

CASE(fionread_of_an_empty_socket)
{
    int client, server, left = -1;
    connected(&client, &server);
    say_result("ioctl", ioctl(client, FIONREAD, &left));
    say("fionread", "%d", left);
}

CASE(everything_is_delivered_in_the_end)
{
    int client, server, left = -1;
    char text[8];
    connected(&client, &server);
    write(client, "abcdef", 6);
    read_all(server, text, 6);
    for (int i = 0; i < 1000 && left; i++) {
        if (ioctl(client, TIOCOUTQ, &left))
            break;
        nap(5);
    }
    say("outq", "%d", left);
}

CASE_WITH(waitall, CALM)
{
    int client, server;
    connected(&client, &server);
    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < 4; i++) {
            write(client, "0123456789", 10);
            nap(20);
        }
        exit(0);
    }
    close(client);
    char room[64] = "";
    say_result("recv", recv(server, room, 40, MSG_WAITALL));
    say("text", "%.12s", room + 28);
    ended(child);
    say_result("at_the_end", recv(server, room, 40, MSG_WAITALL));
}

CASE(waitall_is_cut_short_by_the_end)
{
    int client, server;
    char room[64];
    connected(&client, &server);
    write(client, "0123456789", 10);
    close(client);
    say_result("recv", recv(server, room, 40, MSG_WAITALL));
}

CASE(msg_trunc_discards)
{
    int client, server;
    char room[8] = "------";
    connected(&client, &server);
    write(client, "abcdefgh", 8);
    await_octets(server, 8);
    say_result("recv", recv(server, room, 4, MSG_TRUNC));
    say("untouched", "%.4s", room);
    say_result("then", read(server, room, 4));
    say("text", "%.4s", room);
}

CASE(vectors)
{
    int client, server;
    char a[4] = "", b[8] = "";
    struct iovec out[3] = {{"abc", 3}, {"", 0}, {"defgh", 5}}, in[2] = {{a, 3}, {b, 8}};
    connected(&client, &server);
    say_result("writev", writev(client, out, 3));
    await_octets(server, 8);
    say_result("readv", readv(server, in, 2));
    say("text", "%.3s %.5s", a, b);
    struct msghdr message = {.msg_iov = out, .msg_iovlen = 3};
    say_result("sendmsg", sendmsg(client, &message, 0));
    await_octets(server, 8);
    struct sockaddr_storage name;
    struct msghdr room = {.msg_iov = in, .msg_iovlen = 2, .msg_name = &name,
                          .msg_namelen = sizeof name};
    say_result("recvmsg", recvmsg(server, &room, 0));
    say("name", "%u", (unsigned)room.msg_namelen);
    say("flags", "%d", room.msg_flags);
}

CASE(several_messages_of_a_stream)
{
    int client, server;
    char a[4] = "", b[4] = "";
    struct iovec parts[2] = {{"abc", 3}, {"def", 3}}, room[2] = {{a, 3}, {b, 3}};
    struct mmsghdr out[2] = {{.msg_hdr = {.msg_iov = &parts[0], .msg_iovlen = 1}},
                             {.msg_hdr = {.msg_iov = &parts[1], .msg_iovlen = 1}}},
                   in[2] = {{.msg_hdr = {.msg_iov = &room[0], .msg_iovlen = 1}},
                            {.msg_hdr = {.msg_iov = &room[1], .msg_iovlen = 1}}};
    connected(&client, &server);
    say_result("sendmmsg", sendmmsg(client, out, 2, 0));
    await_octets(server, 6);
    say_result("recvmmsg", recvmmsg(server, in, 2, 0, NULL));
    say("text", "%s %s", a, b);
}

CASE(address_of_a_connected_stream_is_ignored)
{
    int client, server;
    char room[16];
    struct address address = where(nobody()), name = {.length = sizeof name.storage};
    connected(&client, &server);
    say_result("sendto", sendto(client, "hello", 5, 0, (struct sockaddr *)&address.storage,
                                address.length));
    await_octets(server, 5);
    say_result("recvfrom", recvfrom(server, room, sizeof room, 0,
                                    (struct sockaddr *)&name.storage, &name.length));
    say("name", "%u", (unsigned)name.length);
    struct iovec part = {"again", 5};
    struct msghdr message = {&address.storage, address.length, &part, 1, NULL, 0, 0};
    ssize_t sent = sendmsg(client, &message, 0);
    say_result("sendmsg", sent);
    if (sent > 0)
        say_result("arrived", (long)read_all(server, room, 5));
}

CASE(sendto_of_much)
{
    int client, server;
    struct address address = where(nobody());
    unsigned char *octets = pattern(LARGE), *room = malloc(LARGE);
    connected(&client, &server);
    pid_t child = fork();
    if (child == 0) {
        size_t put = 0;
        close(server);
        while (put < LARGE) {
            ssize_t moved = sendto(client, octets + put, LARGE - put, 0,
                                   (struct sockaddr *)&address.storage, address.length);
            if (moved <= 0)
                exit(1);
            put += (size_t)moved;
        }
        exit(0);
    }
    close(client);
    say("octets", "%zu", read_all(server, room, LARGE));
    say("as_sent", "%s", memcmp(room, octets, LARGE) ? "no" : "yes");
    say("sender", "%d", ended(child));
}

CASE(descriptors_over_tcp_are_not_passed)
{
    int client, server;
    char control[CMSG_SPACE(sizeof(int))], room[8] = "";
    struct iovec part = {"data", 4}, in = {room, 8};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    connected(&client, &server);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &client, sizeof client);
    say_result("sendmsg", sendmsg(client, &message, 0));
    await(server, POLLIN);
    struct msghdr answer = {.msg_iov = &in, .msg_iovlen = 1, .msg_control = control,
                            .msg_controllen = sizeof control};
    say_result("recvmsg", recvmsg(server, &answer, 0));
    say("control", "%zu", (size_t)answer.msg_controllen);
}

CASE(sendfile_and_splice)
{
    int client, server, ends[2];
    char room[16] = "";
    connected(&client, &server);
    FILE *file = tmpfile();
    fputs("out of a file", file);
    fflush(file);
    off_t offset = 7;
    say_result("sendfile", sendfile(client, fileno(file), &offset, 6));
    say_result("arrived", (long)read_all(server, room, 6));
    say("text", "%.6s", room);
    if (pipe(ends))
        give_up("pipe");
    write(ends[1], "out of a pipe", 13);
    say_result("splice", splice(ends[0], NULL, client, NULL, 13, 0));
    await_octets(server, 13);
    say_result("splice_back", splice(server, NULL, ends[1], NULL, 64, 0));
    say_result("read", read(ends[0], room, 16));
}

CASE(urgent_data)
{
    int client, server, mark = -1;
    char room[8] = "";
    connected(&client, &server);
    write(client, "abc", 3);
    await_octets(server, 3);
    say_result("send", send(client, "!", 1, MSG_OOB));
    say_events("poll", await(server, POLLPRI));
    write(client, "def", 3);
    nap(60);
    say_result("ioctl", ioctl(server, SIOCATMARK, &mark));
    say("at_mark", "%d", mark);
    say_result("read_stops_at_the_mark", read(server, room, 8));
    ioctl(server, SIOCATMARK, &mark);
    say("at_mark_then", "%d", mark);
    say_result("recv_oob", recv(server, room, 1, MSG_OOB));
    say("octet", "%c", room[0]);
    say_result("recv_oob_again", recv(server, room, 1, MSG_OOB));
    say_result("rest", recv(server, room, 8, MSG_DONTWAIT));
}

CASE(urgent_data_inline)
{
    int client, server, on = 1;
    char room[8] = "";
    connected(&client, &server);
    say_result("set", setsockopt(server, SOL_SOCKET, SO_OOBINLINE, &on, sizeof on));
    write(client, "abc", 3);
    await_octets(server, 3);
    send(client, "!", 1, MSG_OOB);
    say_events("poll", await(server, POLLPRI));
    say_result("read", read(server, room, 8));
    say_result("recv_oob", recv(server, room, 1, MSG_OOB));
    say_result("then", recv(server, room, 8, MSG_DONTWAIT));
    say("octet", "%c", room[0]);
}

CASE(urgent_data_raises_sigurg)
{
    int client, server;
    connected(&client, &server);
    count_signal(SIGURG, SA_RESTART);
    say_result("owner", fcntl(server, F_SETOWN, getpid()));
    send(client, "!", 1, MSG_OOB);
    await(server, POLLPRI);
    for (int i = 0; i < 1000 && !signals_seen; i++)
        nap(5);
    say("signals", "%d", signals_seen);
}

CASE(no_urgent_data)
{
    int client, server;
    char octet;
    connected(&client, &server);
    say_result("recv_oob", recv(server, &octet, 1, MSG_OOB));
}

CASE(msg_more_and_cork_hold_nothing_back_for_good)
{
    int client, server, on = 1, off = 0;
    char room[8] = "";
    connected(&client, &server);
    say_result("send_more", send(client, "ab", 2, MSG_MORE));
    say_result("send", send(client, "cd", 2, 0));
    say_result("arrived", (long)read_all(server, room, 4));
    say_result("cork", setsockopt(client, IPPROTO_TCP, TCP_CORK, &on, sizeof on));
    write(client, "ef", 2);
    say_result("uncork", setsockopt(client, IPPROTO_TCP, TCP_CORK, &off, sizeof off));
    say_result("arrived_then", (long)read_all(server, room, 2));
}

CASE(writes_of_nothing)
{
    int client, server;
    connected(&client, &server);
    say_result("write", write(client, "", 0));
    say_result("send", send(client, "", 0, 0));
    say_events("peer", still(server, POLLIN));
}

CASE(bad_buffers)
{
    int client, server;
    connected(&client, &server);
    write(client, "abc", 3);
    await_octets(server, 3);
    say_result("read", read(server, nowhere, 3));
    say_result("write", write(client, nowhere, 3));
}
