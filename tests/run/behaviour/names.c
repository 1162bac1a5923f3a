/* Names and options: getsockname and its kin, bind, setsockopt, pointers that lead nowhere. */
#include "behaviour.h"

typedef int name_function(int, struct sockaddr *, socklen_t *);

static void say_name(const char *key, name_function *function, int fd, int port)
{
    struct address name = {.length = sizeof name.storage};
    if (function(fd, (struct sockaddr *)&name.storage, &name.length))
        say(key, "%s", error_name(errno));
    else
        say(key, "%s family %d length %u port %s", symbol(&name), name.storage.ss_family,
            (unsigned)name.length,
            !port_of(&name) ? "none" : port_of(&name) == port ? "the listener's" : "some");
}

CASE(names)
{
    struct address address;
    int fresh = make(SOCK_STREAM), listener = listening(8, &address);
    int client = connected_to(&address), server = accepted(listener), port = port_of(&address);
    say_name("fresh", getsockname, fresh, port);
    say_name("listener", getsockname, listener, port);
    say_name("listeners_peer", getpeername, listener, port);
    say_name("client", getsockname, client, port);
    say_name("clients_peer", getpeername, client, port);
    say_name("server", getsockname, server, port);
    say_name("servers_peer", getpeername, server, port);
    shutdown(client, SHUT_WR);
    say_name("after_shutdown", getpeername, client, port);
}

CASE(names_that_do_not_fit)
{
    struct address address;
    char room[64];
    socklen_t length = 4;
    int listener = listening(8, &address);
    memset(room, 'x', sizeof room);
    say_result("short", getsockname(listener, (struct sockaddr *)room, &length));
    say("length", "%u", (unsigned)length);
    say("untouched", "%c", room[4]);
    length = 0;
    say_result("none", getsockname(listener, (struct sockaddr *)room, &length));
    length = (socklen_t)-1;
    say_result("negative", getsockname(listener, (struct sockaddr *)room, &length));
    length = sizeof room;
    say_result("bad_pointer", getsockname(listener, nowhere, &length));
    say_result("bad_length", getsockname(listener, (struct sockaddr *)room, nowhere));
    say_result("bad_descriptor", getsockname(999, (struct sockaddr *)room, &length));
    say_result("no_socket", getsockname(0, (struct sockaddr *)room, &length));
}

CASE(name_of_the_accepted)
{
    struct address address, name = {.length = sizeof name.storage};
    int listener = listening(8, &address), client = connected_to(&address);
    int server = accept(listener, (struct sockaddr *)&name.storage, &name.length);
    struct address own = {.length = sizeof own.storage};
    getsockname(client, (struct sockaddr *)&own.storage, &own.length);
    say("length", "%u", (unsigned)name.length);
    say("port", port_of(&own) == port_of(&name) ? "the client's" : "another");
    connected_to(&address);
    await(listener, POLLIN);
    say_result("bad_pointer", accept(listener, nowhere, &name.length));
    close(server);
}

CASE(addresses_that_are_none)
{
    struct address address = where(nobody()), wrong = address;
    int client = make(SOCK_STREAM);
    say_result("bad_pointer", connect(client, nowhere, address.length));
    say_result("short", connect(client, (struct sockaddr *)&address.storage, 4));
    say_result("too_long", connect(client, (struct sockaddr *)&address.storage, 4096));
    wrong.storage.ss_family = 77;
    say_result("family", connect(client, (struct sockaddr *)&wrong.storage, wrong.length));
    say_result("bind_family", bind(client, (struct sockaddr *)&wrong.storage, wrong.length));
    say_result("bind_bad_pointer", bind(client, nowhere, address.length));
    say_result("bind_short", bind(client, (struct sockaddr *)&address.storage, 3));
    say_result("bad_descriptor",
               connect(999, (struct sockaddr *)&address.storage, address.length));
    say_result("no_socket", connect(0, (struct sockaddr *)&address.storage, address.length));
}

CASE(ports_in_use)
{
    struct address address, own;
    int listener = listening(8, &address), other = make(SOCK_STREAM), on = 1;
    own = here(port_of(&address));
    say_result("bind", bind(other, (struct sockaddr *)&own.storage, own.length));
    setsockopt(other, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    say_result("bind_reuseaddr", bind(other, (struct sockaddr *)&own.storage, own.length));
    close(listener);
    say_result("once_it_is_closed", bind(other, (struct sockaddr *)&own.storage, own.length));
    say_result("bind_twice", bind(other, (struct sockaddr *)&own.storage, own.length));
    say_result("listen", listen(other, 5));
    connected_to(&address);
    accepted(other);
}

CASE(reuseport)
{
    int one = make(SOCK_STREAM), other = make(SOCK_STREAM), on = 1;
    struct address own = here(0), name = {.length = sizeof name.storage};
    say_result("set", setsockopt(one, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on));
    setsockopt(other, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    say_result("bind", bind(one, (struct sockaddr *)&own.storage, own.length));
    listen(one, 5);
    getsockname(one, (struct sockaddr *)&name.storage, &name.length);
    own = here(port_of(&name));
    say_result("bind_other", bind(other, (struct sockaddr *)&own.storage, own.length));
    say_result("listen_other", listen(other, 5));
}

CASE(an_address_of_somebody_else)
{
    struct address own = here(0);
    int fd = make(SOCK_STREAM);
    if (own.storage.ss_family == AF_INET)
        ((struct sockaddr_in *)&own.storage)->sin_addr.s_addr = htonl(0xc6336401);
    else
        ((struct sockaddr_in6 *)&own.storage)->sin6_addr.s6_addr[0] = 0x20;
    say_result("bind", bind(fd, (struct sockaddr *)&own.storage, own.length));
}

static void say_option(const char *key, int fd, int level, int name)
{
    int value = -1;
    socklen_t length = sizeof value;
    if (getsockopt(fd, level, name, &value, &length))
        say(key, "%s", error_name(errno));
    else
        say(key, "%d (%u)", value, (unsigned)length);
}

static void set_option(const char *key, int fd, int level, int name, int value)
{
    char set[64];
    snprintf(set, sizeof set, "%s_set", key);
    say_result(set, setsockopt(fd, level, name, &value, sizeof value));
    say_option(key, fd, level, name);
}

CASE(options_of_the_socket)
{
    int client, server;
    connected(&client, &server);
    say_option("type", client, SOL_SOCKET, SO_TYPE);
    say_option("domain", client, SOL_SOCKET, SO_DOMAIN);
    say_option("protocol", client, SOL_SOCKET, SO_PROTOCOL);
    say_option("acceptconn", client, SOL_SOCKET, SO_ACCEPTCONN);
    set_option("reuseaddr", client, SOL_SOCKET, SO_REUSEADDR, 1);
    set_option("keepalive", client, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_option("keepalive_off", client, SOL_SOCKET, SO_KEEPALIVE, 0);
    set_option("rcvbuf", client, SOL_SOCKET, SO_RCVBUF, 65536);
    set_option("sndbuf", client, SOL_SOCKET, SO_SNDBUF, 65536);
    set_option("rcvlowat", client, SOL_SOCKET, SO_RCVLOWAT, 1);
    set_option("oobinline", client, SOL_SOCKET, SO_OOBINLINE, 1);
    struct linger value = {1, 7};
    socklen_t length = sizeof value;
    say_result("linger_set", setsockopt(client, SOL_SOCKET, SO_LINGER, &value, sizeof value));
    value.l_linger = 0;
    getsockopt(client, SOL_SOCKET, SO_LINGER, &value, &length);
    say("linger", "%d %d", value.l_onoff, value.l_linger);
    value.l_onoff = 0;
    setsockopt(client, SOL_SOCKET, SO_LINGER, &value, sizeof value);
}

CASE(options_of_tcp)
{
    int client, server;
    connected(&client, &server);
    set_option("nodelay", client, IPPROTO_TCP, TCP_NODELAY, 1);
    set_option("nodelay_off", client, IPPROTO_TCP, TCP_NODELAY, 0);
    set_option("keepidle", client, IPPROTO_TCP, TCP_KEEPIDLE, 77);
    set_option("keepintvl", client, IPPROTO_TCP, TCP_KEEPINTVL, 7);
    set_option("keepcnt", client, IPPROTO_TCP, TCP_KEEPCNT, 5);
    set_option("user_timeout", client, IPPROTO_TCP, TCP_USER_TIMEOUT, 9000);
    set_option("cork", client, IPPROTO_TCP, TCP_CORK, 1);
    set_option("cork_off", client, IPPROTO_TCP, TCP_CORK, 0);
    struct tcp_info info;
    socklen_t length = sizeof info.tcpi_state;
    memset(&info, 0, sizeof info);
    say_result("info", getsockopt(client, IPPROTO_TCP, TCP_INFO, &info, &length));
    say("state", "%d", info.tcpi_state);
    int value = 0;
    length = sizeof value;
    getsockopt(client, IPPROTO_TCP, TCP_MAXSEG, &value, &length);
    say("maxseg", value > 0 ? "some" : "none");
}

CASE(options_of_ip)
{
    int client, server;
    connected(&client, &server);
    set_option("tos", client, IPPROTO_IP, IP_TOS, 0x10);
    set_option("ttl", client, IPPROTO_IP, IP_TTL, 33);
    set_option("ipv6_of_ipv4", client, IPPROTO_IPV6, IPV6_V6ONLY, 1);
}

CASE(options_that_are_none)
{
    int client, server, value = 1;
    socklen_t length = sizeof value;
    connected(&client, &server);
    say_result("name", setsockopt(client, SOL_SOCKET, 9999, &value, sizeof value));
    say_result("level", setsockopt(client, 9999, 1, &value, sizeof value));
    say_result("tcp", setsockopt(client, IPPROTO_TCP, 9999, &value, sizeof value));
    say_result("short", setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &value, 1));
    say_result("bad_pointer", setsockopt(client, IPPROTO_TCP, TCP_NODELAY, nowhere, 4));
    say_result("get_name", getsockopt(client, SOL_SOCKET, 9999, &value, &length));
    say_result("get_bad_pointer", getsockopt(client, SOL_SOCKET, SO_TYPE, nowhere, &length));
    say_result("get_bad_length", getsockopt(client, SOL_SOCKET, SO_TYPE, &value, nowhere));
    say_result("bad_descriptor", setsockopt(999, SOL_SOCKET, SO_KEEPALIVE, &value, 4));
    say_result("no_socket", setsockopt(0, SOL_SOCKET, SO_KEEPALIVE, &value, 4));
    length = 2;
    value = -1;
    say_result("get_short", getsockopt(client, SOL_SOCKET, SO_TYPE, &value, &length));
    say("length", "%u", (unsigned)length);
}

CASE(credentials_of_the_peer)
{
    int client, server;
    struct ucred credentials = {1, 1, 1};
    socklen_t length = sizeof credentials;
    connected(&client, &server);
    say_result("get", getsockopt(client, SOL_SOCKET, SO_PEERCRED, &credentials, &length));
    say("process", "%d", (int)credentials.pid);
}

CASE(options_that_reach_past_the_stream)
{
    int client, server, on = 1;
    connected(&client, &server);
    say_result("ulp", setsockopt(client, IPPROTO_TCP, TCP_ULP, "tls", 4));
    say_result("zerocopy", setsockopt(client, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on));
    say_result("congestion", setsockopt(client, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5));
    say_result("fastopen", setsockopt(make(SOCK_STREAM), IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &on,
                                      sizeof on));
}

CASE(other_sockets_are_left_alone)
{
    int ends[2], value = -1;
    socklen_t length = sizeof value;
    struct address name = {.length = sizeof name.storage};
    say_result("socketpair", socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends));
    getsockname(ends[0], (struct sockaddr *)&name.storage, &name.length);
    say("family", "%d", name.storage.ss_family);
    getsockopt(ends[0], SOL_SOCKET, SO_TYPE, &value, &length);
    say("type", "%d", value);
    say("unknown_family", "%s", socket(44, SOCK_STREAM, 0) < 0 ? "refused" : "made");
    say_result("unknown_type", socket(AF_INET, 77, 0));
    say_result("unknown_protocol", socket(AF_INET, SOCK_STREAM, IPPROTO_UDP));
    say_result("seqpacket", socket(AF_INET, SOCK_SEQPACKET, 0));
}

CASE(what_kind_of_file_it_is)
{
    int client, server;
    struct stat found;
    char path[64], text[64] = "";
    connected(&client, &server);
    fstat(client, &found);
    say("socket", "%d", !!S_ISSOCK(found.st_mode));
    snprintf(path, sizeof path, "/proc/self/fd/%d", client);
    say("link", "%s", readlink(path, text, 7) == 7 ? text : "");
    say_result("seek", lseek(client, 0, SEEK_SET));
    say("flags", "%d", (fcntl(client, F_GETFL) & O_ACCMODE) == O_RDWR);
}
