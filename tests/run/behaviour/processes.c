/* Sockets that are duplicated, inherited, passed on, shared by threads; descriptors and limits. */
#include "behaviour.h"

#include <sys/resource.h>
#include <sys/syscall.h>

static void say_peer(const char *key, int fd, int port)
{
    struct address name = {.length = sizeof name.storage};
    int result = getpeername(fd, (struct sockaddr *)&name.storage, &name.length);
    say(key, "%s", result ? error_name(errno) : port_of(&name) == port ? "the port" : "another");
}

CASE(duplicates)
{
    struct address address;
    int listener = listening(8, &address), client = connected_to(&address);
    int server = accepted(listener), copy = dup(client);
    char octet;
    close(client);
    say_peer("dup", copy, port_of(&address));
    say_result("dup2", dup2(copy, 200));
    close(copy);
    say_peer("dup2_peer", 200, port_of(&address));
    int third = fcntl(200, F_DUPFD_CLOEXEC, 100);
    close(200);
    say_result("write", write(third, "x", 1));
    say_result("read", read(server, &octet, 1));
    close(third);
    say_result("end", read(server, &octet, 1));
}

CASE(duplicate_of_a_fresh_socket)
{
    struct address address;
    int listener = listening(8, &address), one = make(SOCK_STREAM), other = dup(one);
    say_result("connect", connect(one, (struct sockaddr *)&address.storage, address.length));
    say_peer("other", other, port_of(&address));
    close(one);
    int server = accepted(listener);
    say_result("write", write(server, "x", 1));
    char octet;
    say_result("read", read(other, &octet, 1));
}

CASE(a_child_has_it_alone)
{
    int client, server;
    char octet;
    connected(&client, &server);
    pid_t child = fork();
    if (child == 0) {
        close(server);
        write(client, "c", 1);
        exit(0);
    }
    close(client);
    say_result("read", read(server, &octet, 1));
    say("child", "%d", ended(child));
    say_result("end", read(server, &octet, 1));
}

CASE(children_accept_from_one_listener)
{
    enum { CHILDREN = 3 };
    struct address address;
    int listener = listening(16, &address), sum = 0;
    pid_t children[CHILDREN];
    for (int i = 0; i < CHILDREN; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            int server = accept(listener, NULL, NULL);
            char octet;
            exit(read(server, &octet, 1) == 1 && write(server, &octet, 1) == 1 ? 1 : 0);
        }
    }
    for (int i = 0; i < CHILDREN; i++) {
        int client = connected_to(&address);
        char octet = (char)i, back = -1;
        write(client, &octet, 1);
        read(client, &back, 1);
        sum += back == octet;
    }
    say("answered", "%d", sum);
    for (int i = 0; i < CHILDREN; i++)
        sum += ended(children[i]);
    say("all", "%d", sum);
}

CASE(exec_keeps_it)
{
    int client, server;
    char text[8] = "", command[64];
    connected(&client, &server);
    snprintf(command, sizeof command, "printf hello >&%d", client);
    pid_t child = fork();
    if (child == 0) {
        execl("/bin/sh", "sh", "-c", command, NULL);
        exit(1);
    }
    say("child", "%d", ended(child));
    say_result("read", (long)read_all(server, text, 5));
    say("text", "%s", text);
}

CASE(close_on_exec)
{
    struct address address;
    int listener = listening(8, &address);
    int client = make(SOCK_STREAM | SOCK_CLOEXEC), plain = make(SOCK_STREAM);
    say("asked_for", "%d", !!(fcntl(client, F_GETFD) & FD_CLOEXEC));
    say("not_asked_for", "%d", !!(fcntl(plain, F_GETFD) & FD_CLOEXEC));
    connect(client, (struct sockaddr *)&address.storage, address.length);
    int server = accepted(listener);
    char octet;
    pid_t child = fork();
    if (child == 0) {
        execl("/bin/sh", "sh", "-c", "exit 0", NULL);
        exit(1);
    }
    ended(child);
    close(client);
    say_result("end", read(server, &octet, 1));
}

static void pass(int channel, int fd)
{
    char control[CMSG_SPACE(sizeof(int))];
    struct iovec part = {"f", 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    if (sendmsg(channel, &message, 0) < 0)
        give_up("pass");
}

static int passed(int channel)
{
    char control[CMSG_SPACE(sizeof(int))], octet;
    struct iovec part = {&octet, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    int fd = -1;
    if (recvmsg(channel, &message, 0) == 1 && CMSG_FIRSTHDR(&message))
        memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}

CASE(passed_to_another_process)
{
    struct address address;
    int ends[2], listener = listening(8, &address);
    char octet;
    socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
    pid_t child = fork();
    if (child == 0) {
        close(listener);
        int theirs = passed(ends[1]);
        struct address name = {.length = sizeof name.storage};
        int good = getpeername(theirs, (struct sockaddr *)&name.storage, &name.length) == 0 &&
                   write(theirs, "p", 1) == 1;
        int other = passed(ends[1]), server = accept(other, NULL, NULL);
        exit(good && write(server, "s", 1) == 1 ? 0 : 1);
    }
    int client = connected_to(&address), server = accepted(listener);
    pass(ends[0], client);
    close(client);
    say_result("read", read(server, &octet, 1));
    pass(ends[0], listener);
    int second = connected_to(&address);
    say_result("accepted_over_there", read(second, &octet, 1));
    say("child", "%d", ended(child));
}

struct echo {
    struct address address;
    int listener, good;
};

static void *echo_server(void *argument)
{
    struct echo *echo = argument;
    for (;;) {
        int fd = accept(echo->listener, NULL, NULL);
        if (fd < 0)
            return NULL;
        char room[256];
        ssize_t octets;
        while ((octets = read(fd, room, sizeof room)) > 0)
            write_all(fd, room, (size_t)octets);
        close(fd);
    }
}

static void *echo_client(void *argument)
{
    struct echo *echo = argument;
    for (int i = 0; i < 20; i++) {
        char out[16], in[16];
        int fd = connected_to(&echo->address);
        memset(out, i, sizeof out);
        write_all(fd, out, sizeof out);
        if (read_all(fd, in, sizeof in) == sizeof in && !memcmp(in, out, sizeof in))
            __atomic_add_fetch(&echo->good, 1, __ATOMIC_RELAXED);
        close(fd);
    }
    return NULL;
}

CASE(threads)
{
    enum { SERVERS = 3, CLIENTS = 4 };
    struct echo echo = {.good = 0};
    pthread_t servers[SERVERS], clients[CLIENTS];
    echo.listener = listening(64, &echo.address);
    for (int i = 0; i < SERVERS; i++)
        pthread_create(&servers[i], NULL, echo_server, &echo);
    for (int i = 0; i < CLIENTS; i++)
        pthread_create(&clients[i], NULL, echo_client, &echo);
    for (int i = 0; i < CLIENTS; i++)
        pthread_join(clients[i], NULL);
    say("good", "%d", echo.good);
    shutdown(echo.listener, SHUT_RDWR);
    for (int i = 0; i < SERVERS; i++)
        pthread_join(servers[i], NULL);
    say("servers", "ended");
}

static void *closer(void *argument)
{
    nap(80);
    close(*(int *)argument);
    return NULL;
}

CASE_WITH(another_thread_closes_what_accept_waits_for, CALM)
{
    struct address address;
    int listener = listening(8, &address);
    pthread_t thread;
    sigset_t alarms;
    sigemptyset(&alarms);
    sigaddset(&alarms, SIGALRM);
    count_signal(SIGALRM, 0);
    pthread_sigmask(SIG_BLOCK, &alarms, NULL);
    pthread_create(&thread, NULL, closer, &listener);
    pthread_sigmask(SIG_UNBLOCK, &alarms, NULL);
    alarm_in(400);
    say_result("accept", accept(listener, NULL, NULL));
    pthread_join(thread, NULL);
}

CASE(the_lowest_descriptor)
{
    int one = make(SOCK_STREAM), two = make(SOCK_STREAM);
    close(one);
    int again = make(SOCK_STREAM);
    say("again", "%s", again == one && two > one ? "the lowest" : "another");
}

CASE(too_many_descriptors)
{
    struct address address;
    int listener = listening(8, &address), client = connected_to(&address);
    await(listener, POLLIN);
    struct rlimit limit = {(rlim_t)client + 1, (rlim_t)client + 1};
    setrlimit(RLIMIT_NOFILE, &limit);
    say_result("socket", socket(AF_INET, SOCK_STREAM, 0));
    say_result("accept", accept(listener, NULL, NULL));
    close(client);
    say("then", "%s", accept(listener, NULL, NULL) == client ? "accepted" : error_name(errno));
}

CASE(io_uring)
{
    char parameters[120] = "";
    long fd = syscall(SYS_io_uring_setup, 4, parameters);
    say("setup", "%s", fd >= 0 ? "a ring" : error_name(errno));
}
