/* Datagrams: unconnected and connected, truncated, refused, several at once; names by DNS. */
#include "behaviour.h"

#include <arpa/nameser.h>
#include <resolv.h>

static int bound(struct address *address)
{
    int fd = make(SOCK_DGRAM);
    *address = here(0);
    if (bind(fd, (struct sockaddr *)&address->storage, address->length))
        give_up("bind");
    address->length = sizeof address->storage;
    if (getsockname(fd, (struct sockaddr *)&address->storage, &address->length))
        give_up("getsockname");
    *address = where(port_of(address));
    return fd;
}

static long send_to(int fd, const char *text, const struct address *address)
{
    return sendto(fd, text, strlen(text), 0, (const struct sockaddr *)&address->storage,
                  address->length);
}

CASE(unconnected_datagrams)
{
    struct address one, other, name = {.length = sizeof name.storage};
    int server = bound(&one), client = bound(&other);
    char room[32] = "";
    say_events("idle", at_once(server, POLLIN | POLLOUT));
    say_result("sendto", send_to(client, "question", &one));
    say_events("poll", await(server, POLLIN));
    say_result("recvfrom", recvfrom(server, room, sizeof room, 0,
                                    (struct sockaddr *)&name.storage, &name.length));
    say("text", "%s", room);
    say("from", "%s length %u", port_of(&name) == port_of(&other) ? "the client" : "another",
        (unsigned)name.length);
    name = where(port_of(&name));
    say_result("answer", send_to(server, "answer", &name));
    say_result("recv", recv(client, room, sizeof room, 0));
}

CASE(boundaries_of_datagrams)
{
    struct address address;
    int server = bound(&address), client = make(SOCK_DGRAM), left = -1;
    char room[32];
    send_to(client, "first", &address);
    send_to(client, "", &address);
    send_to(client, "third one", &address);
    await(server, POLLIN);
    ioctl(server, FIONREAD, &left);
    say("fionread", "%d", left);
    say_result("peek", recv(server, room, sizeof room, MSG_PEEK));
    say_result("first", recv(server, room, sizeof room, 0));
    say_result("empty", recv(server, room, sizeof room, 0));
    struct iovec part = {room, 5};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    await(server, POLLIN);
    say_result("truncated", recvmsg(server, &message, 0));
    say("flag", "%d", !!(message.msg_flags & MSG_TRUNC));
    say_result("dontwait", recv(server, room, sizeof room, MSG_DONTWAIT));
    send_to(client, "third one", &address);
    await(server, POLLIN);
    say_result("msg_trunc", recv(server, room, 2, MSG_TRUNC));
}

CASE(connected_datagrams)
{
    struct address one, other, name = {.length = sizeof name.storage};
    int server = bound(&one), stranger = bound(&other), client = make(SOCK_DGRAM);
    char room[32];
    say_result("write_before", write(client, "x", 1));
    say_result("connect", connect(client, (struct sockaddr *)&one.storage, one.length));
    say_result("write", write(client, "hello", 5));
    recvfrom(server, room, sizeof room, 0, (struct sockaddr *)&name.storage, &name.length);
    send_to(stranger, "from elsewhere", &name);
    send_to(server, "reply", &name);
    say_result("read", read(client, room, sizeof room));
    say_events("nothing_of_the_stranger", still(client, POLLIN));
    struct address peer = {.length = sizeof peer.storage};
    say_result("getpeername",
               getpeername(client, (struct sockaddr *)&peer.storage, &peer.length));
    say("peer", port_of(&peer) == port_of(&one) ? "the server" : "another");
    struct sockaddr nobody_at_all = {.sa_family = AF_UNSPEC};
    say_result("disconnect", connect(client, &nobody_at_all, sizeof nobody_at_all));
    say_result("getpeername_then",
               getpeername(client, (struct sockaddr *)&peer.storage, &peer.length));
}

CASE(refused_datagrams)
{
    struct address address;
    int server = bound(&address), client = make(SOCK_DGRAM);
    char octet;
    close(server);
    connect(client, (struct sockaddr *)&address.storage, address.length);
    say_result("write", write(client, "x", 1));
    say("poll", "%s", await_for(client, POLLIN, 1000) & POLLERR ? "ERR" : "no ERR");
    say_result("read", recv(client, &octet, 1, MSG_DONTWAIT));
    say_result("read_again", recv(client, &octet, 1, MSG_DONTWAIT));
}

CASE(long_datagrams)
{
    struct address address;
    int server = bound(&address), client = make(SOCK_DGRAM);
    static char room[70000];
    memset(room, 'd', sizeof room);
    say_result("too_long", sendto(client, room, 70000, 0, (struct sockaddr *)&address.storage,
                                  address.length));
    say_result("long", sendto(client, room, 40000, 0, (struct sockaddr *)&address.storage,
                              address.length));
    say_result("recv", recv(server, room, sizeof room, 0));
}

CASE_WITH(several_datagrams_in_a_call, CALM)
{
    struct address address;
    int server = bound(&address), client = make(SOCK_DGRAM);
    char rooms[3][16] = {"", "", ""};
    struct iovec parts[3] = {{"one", 3}, {"two", 3}, {"three", 5}}, in[3];
    struct mmsghdr out[3], back[3];
    memset(out, 0, sizeof out);
    memset(back, 0, sizeof back);
    for (int i = 0; i < 3; i++) {
        out[i].msg_hdr = (struct msghdr){&address.storage, address.length, &parts[i], 1, 0, 0, 0};
        in[i] = (struct iovec){rooms[i], 16};
        back[i].msg_hdr.msg_iov = &in[i];
        back[i].msg_hdr.msg_iovlen = 1;
    }
    int sent = sendmmsg(client, out, 3, 0);
    say_result("sendmmsg", sent);
    while (sent > 0 && sent < 3) /* fewer than all is for the caller to go on from */
        sent += sendmmsg(client, out + sent, (unsigned)(3 - sent), 0);
    nap(200);
    await(server, POLLIN);
    say_result("recvmmsg", recvmmsg(server, back, 3, 0, NULL));
    say("texts", "%s %s %s", rooms[0], rooms[1], rooms[2]);
    say("lengths", "%u %u %u", back[0].msg_len, back[1].msg_len, back[2].msg_len);
}

CASE(names_and_options_of_datagram_sockets)
{
    struct address address, name = {.length = sizeof name.storage};
    int server = bound(&address), fresh = make(SOCK_DGRAM), value = 0;
    socklen_t length = sizeof value;
    getsockname(fresh, (struct sockaddr *)&name.storage, &name.length);
    say("fresh", "%s %s", symbol(&name), port_of(&name) ? "some" : "none");
    send_to(fresh, "x", &address);
    name.length = sizeof name.storage;
    getsockname(fresh, (struct sockaddr *)&name.storage, &name.length);
    say("after_sending", "%s", port_of(&name) ? "some" : "none");
    getsockopt(fresh, SOL_SOCKET, SO_TYPE, &value, &length);
    say("type", "%d", value);
    getsockopt(fresh, SOL_SOCKET, SO_PROTOCOL, &value, &length);
    say("protocol", "%d", value);
    say_result("listen", listen(fresh, 5));
    say_result("accept", accept(fresh, NULL, NULL));
    struct address own = here(port_of(&address));
    int other = make(SOCK_DGRAM);
    say_result("bind_used", bind(other, (struct sockaddr *)&own.storage, own.length));
    say_result("no_address", send(other, "x", 1, 0));
    close(server);
}

CASE_WITH(datagrams_are_waited_for_by_so_rcvtimeo, CALM)
{
    struct address address;
    int server = bound(&address);
    char octet;
    struct timeval soon = {0, 80000};
    setsockopt(server, SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof soon);
    say_result("recv", recv(server, &octet, 1, 0));
}

CASE(many_datagrams)
{
    struct address address;
    int server = bound(&address), client = make(SOCK_DGRAM), right = 0;
    for (int i = 0; i < 100; i++) {
        char out[64], in[64] = "";
        snprintf(out, sizeof out, "datagram %d", i);
        send_to(client, out, &address);
        await(server, POLLIN);
        recv(server, in, sizeof in, 0);
        right += !strcmp(out, in);
    }
    say("right", "%d", right);
}

/* Answers one question after the other with 192.0.2.7. */
static void *name_server(void *argument)
{
    int fd = *(int *)argument;
    for (;;) {
        unsigned char packet[512];
        struct sockaddr_storage from;
        socklen_t length = sizeof from;
        ssize_t octets = recvfrom(fd, packet, 480, 0, (struct sockaddr *)&from, &length);
        if (octets < 12)
            return NULL;
        size_t end = 12;
        while (end < (size_t)octets && packet[end])
            end += packet[end] + 1U;
        end += 5;
        static const unsigned char answer[] = {0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60,
                                               0,    4,    192, 0, 2, 7};
        packet[2] |= 0x80;
        packet[7] = 1;
        packet[8] = packet[9] = packet[10] = packet[11] = 0;
        memcpy(packet + end, answer, sizeof answer);
        sendto(fd, packet, end + sizeof answer, 0, (struct sockaddr *)&from, length);
    }
}

CASE(names_are_looked_up)
{
    struct address address;
    int server = bound(&address);
    pthread_t thread;
    unsigned char answer[512];
    pthread_create(&thread, NULL, name_server, &server);
    struct __res_state state;
    memset(&state, 0, sizeof state);
    res_ninit(&state);
    state.nscount = 1;
    memcpy(&state.nsaddr_list[0], &address.storage, sizeof state.nsaddr_list[0]);
    state.retrans = 5;
    int octets = res_nquery(&state, "steertag.example", ns_c_in, ns_t_a, answer, sizeof answer);
    say("answered", "%s", octets > 4 ? "yes" : "no");
    if (octets > 4)
        say("address", "%d.%d.%d.%d", answer[octets - 4], answer[octets - 3], answer[octets - 2],
            answer[octets - 1]);
}
