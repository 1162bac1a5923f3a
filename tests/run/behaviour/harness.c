/* Runs the cases, each in a process of its own; and what they share.
 *
 *     behaviour [-c ADDRESS] [-b ADDRESS] [-s MICROSECONDS] [-l] [CASE...]
 *
 * -c: the address that clients connect to; -b: that servers bind. -s: a signal that often, with
 * SA_RESTART, in every case that allows for it. -l: list the cases. Output: "case.key value" lines.
 */
#include "behaviour.h"

#include <stdarg.h>
#include <sys/prctl.h>
#include <time.h>

enum { MOST_CASES = 300, PATIENCE_MS = 15000, CASE_MS = 40000, QUIET_MS = 60, ROOM = 16384 };

static struct {
    const char *name;
    int flags;
    case_function *run;
} cases[MOST_CASES];
static int count;

static struct address connect_address, bind_address;
static long storm;
static char *said; /* shared with the parent */
static const char *current;

volatile sig_atomic_t signals_seen;
void *volatile nowhere = (void *)8;

void enter_case(const char *name, int flags, case_function *run)
{
    if (count == MOST_CASES)
        abort();
    cases[count].name = name;
    cases[count].flags = flags;
    cases[count++].run = run;
}

static void append(const char *key, const char *value)
{
    size_t used = strlen(said);
    snprintf(said + used, ROOM - used, "%s.%s %s\n", current, key, value);
}

void say(const char *key, const char *format, ...)
{
    char value[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(value, sizeof value, format, arguments);
    va_end(arguments);
    append(key, value);
}

void say_result(const char *key, long result)
{
    if (result < 0)
        append(key, error_name(errno));
    else
        say(key, "%ld", result);
}

void say_events(const char *key, short revents)
{
    static const struct {
        short bit;
        const char *name;
    } names[] = {{POLLIN, "IN"},   {POLLPRI, "PRI"}, {POLLOUT, "OUT"},     {POLLERR, "ERR"},
                 {POLLHUP, "HUP"}, {POLLNVAL, "NVAL"}, {POLLRDHUP, "RDHUP"}};
    char text[64] = "";
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (revents & names[i].bit) {
            if (*text)
                strcat(text, "|");
            strcat(text, names[i].name);
        }
    append(key, *text ? text : "none");
}

const char *error_name(int number)
{
    static char other[32];
#define NAME(e) \
    case e:     \
        return #e;
    switch (number) {
        NAME(EPERM) NAME(ENOENT) NAME(EINTR) NAME(EIO) NAME(EBADF) NAME(EAGAIN) NAME(ENOMEM)
        NAME(EACCES) NAME(EFAULT) NAME(EBUSY) NAME(EEXIST) NAME(EINVAL) NAME(EMFILE) NAME(ENOTTY)
        NAME(ESPIPE) NAME(EPIPE) NAME(ERANGE) NAME(EDOM) NAME(ENOSYS) NAME(ENOTSOCK)
        NAME(EDESTADDRREQ) NAME(EMSGSIZE) NAME(EPROTOTYPE) NAME(ENOPROTOOPT) NAME(EPROTONOSUPPORT)
        NAME(ESOCKTNOSUPPORT) NAME(EOPNOTSUPP) NAME(EPFNOSUPPORT) NAME(EAFNOSUPPORT)
        NAME(EADDRINUSE) NAME(EADDRNOTAVAIL) NAME(ENETDOWN) NAME(ENETUNREACH) NAME(ENETRESET)
        NAME(ECONNABORTED) NAME(ECONNRESET) NAME(ENOBUFS) NAME(EISCONN) NAME(ENOTCONN)
        NAME(ESHUTDOWN) NAME(ETIMEDOUT) NAME(ECONNREFUSED) NAME(EHOSTDOWN) NAME(EHOSTUNREACH)
        NAME(EALREADY) NAME(EINPROGRESS) NAME(EPROTO) NAME(ECHILD) NAME(ESRCH)
    case 0:
        return "0";
    }
#undef NAME
    snprintf(other, sizeof other, "E%d", number);
    return other;
}

void give_up(const char *what)
{
    say("gave_up", "%s: %s", what, error_name(errno));
    exit(1);
}

/* -- addresses ---------------------------------------------------------------------------------- */

static struct address with_port(struct address address, int port)
{
    if (address.storage.ss_family == AF_INET6)
        ((struct sockaddr_in6 *)&address.storage)->sin6_port = htons((uint16_t)port);
    else
        ((struct sockaddr_in *)&address.storage)->sin_port = htons((uint16_t)port);
    return address;
}

struct address where(int port)
{
    return with_port(connect_address, port);
}

struct address here(int port)
{
    return with_port(bind_address, port);
}

int port_of(const struct address *address)
{
    if (address->storage.ss_family == AF_INET6)
        return ntohs(((const struct sockaddr_in6 *)&address->storage)->sin6_port);
    return ntohs(((const struct sockaddr_in *)&address->storage)->sin_port);
}

static bool same_host(const struct address *a, const struct address *b)
{
    struct address one = with_port(*a, 0), other = with_port(*b, 0);
    if (one.storage.ss_family != other.storage.ss_family)
        return false;
    if (one.storage.ss_family == AF_INET6)
        return !memcmp(&((struct sockaddr_in6 *)&one.storage)->sin6_addr,
                       &((struct sockaddr_in6 *)&other.storage)->sin6_addr, 16);
    return ((struct sockaddr_in *)&one.storage)->sin_addr.s_addr ==
           ((struct sockaddr_in *)&other.storage)->sin_addr.s_addr;
}

static bool on_loopback(const struct address *address)
{
    const struct sockaddr_in *four = (const struct sockaddr_in *)&address->storage;
    return address->storage.ss_family == AF_INET && ntohl(four->sin_addr.s_addr) >> 24 == 127;
}

const char *symbol(const struct address *address)
{
    struct address any = {.length = sizeof(struct sockaddr_in)};
    any.storage.ss_family = AF_INET;
    if (same_host(address, &any))
        return "ANY";
    if (same_host(address, &connect_address))
        return "PEER";
    /* To 127.0.0.2 one goes from 127.0.0.1: both are this host. */
    if (on_loopback(address) && on_loopback(&connect_address))
        return "PEER";
    return same_host(address, &bind_address) ? "HERE" : "ELSEWHERE";
}

int nobody(void)
{
    struct address address;
    int listener = listening(1, &address);
    close(listener);
    return port_of(&address);
}

/* -- sockets ------------------------------------------------------------------------------------ */

int make(int type)
{
    int fd = socket(connect_address.storage.ss_family, type, 0);
    if (fd < 0)
        give_up("socket");
    return fd;
}

int listening(int backlog, struct address *address)
{
    int fd = make(SOCK_STREAM);
    *address = here(0);
    if (bind(fd, (struct sockaddr *)&address->storage, address->length))
        give_up("bind");
    if (listen(fd, backlog))
        give_up("listen");
    address->length = sizeof address->storage;
    if (getsockname(fd, (struct sockaddr *)&address->storage, &address->length))
        give_up("getsockname");
    *address = where(port_of(address));
    return fd;
}

int connected_to(const struct address *address)
{
    int fd = make(SOCK_STREAM);
    if (connect(fd, (const struct sockaddr *)&address->storage, address->length))
        give_up("connect");
    return fd;
}

int accepted(int listener)
{
    if (!await(listener, POLLIN))
        give_up("nothing to accept");
    int fd = accept(listener, NULL, NULL);
    if (fd < 0)
        give_up("accept");
    return fd;
}

void connected(int *client, int *server)
{
    struct address address;
    int listener = listening(8, &address);
    *client = connected_to(&address);
    *server = accepted(listener);
    close(listener);
}

int socket_error(int fd)
{
    int number = -1;
    socklen_t length = sizeof number;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &number, &length))
        give_up("SO_ERROR");
    return number;
}

void set_nonblocking(int fd, bool on)
{
    int flags = fcntl(fd, F_GETFL);
    fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK);
}

/* -- waiting ------------------------------------------------------------------------------------ */

static long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

short await_for(int fd, short events, int milliseconds)
{
    long end = now_ms() + milliseconds;
    for (;;) {
        struct pollfd entry = {.fd = fd, .events = events};
        long left = end - now_ms();
        int found = poll(&entry, 1, left > 0 ? (int)left : 0);
        if (found > 0)
            return entry.revents;
        if (found == 0 || errno != EINTR)
            return 0;
    }
}

short await(int fd, short events)
{
    return await_for(fd, events, PATIENCE_MS);
}

short at_once(int fd, short events)
{
    return await_for(fd, events, 0);
}

short still(int fd, short events)
{
    nap(QUIET_MS);
    return at_once(fd, events);
}

void nap(int milliseconds)
{
    struct timespec left = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
    while (nanosleep(&left, &left) && errno == EINTR)
        continue;
}

bool await_octets(int fd, int wanted)
{
    for (int tries = 0; tries < PATIENCE_MS / 5; tries++) {
        int there = 0;
        if (ioctl(fd, FIONREAD, &there) == 0 && there >= wanted)
            return true;
        nap(5);
    }
    return false;
}

size_t read_all(int fd, void *buffer, size_t wanted)
{
    size_t got = 0;
    while (got < wanted) {
        ssize_t octets = read(fd, (char *)buffer + got, wanted - got);
        if (octets > 0)
            got += (size_t)octets;
        else if (octets < 0 && (errno == EAGAIN || errno == EINTR))
            await(fd, POLLIN);
        else
            break;
    }
    return got;
}

size_t write_all(int fd, const void *buffer, size_t wanted)
{
    size_t put = 0;
    while (put < wanted) {
        ssize_t octets = send(fd, (const char *)buffer + put, wanted - put, MSG_NOSIGNAL);
        if (octets > 0)
            put += (size_t)octets;
        else if (octets < 0 && (errno == EAGAIN || errno == EINTR))
            await(fd, POLLOUT);
        else
            break;
    }
    return put;
}

size_t fill(int fd)
{
    static const char zeros[65536];
    size_t put = 0;
    set_nonblocking(fd, true);
    for (int pauses = 0; pauses < 10;) { /* what is on its way to the peer makes room once more */
        ssize_t octets = send(fd, zeros, sizeof zeros, MSG_NOSIGNAL);
        if (octets > 0) {
            put += (size_t)octets;
            pauses = 0;
        } else if (errno == EAGAIN)
            pauses += !await_for(fd, POLLOUT, QUIET_MS);
        else if (errno != EINTR)
            break;
    }
    return put;
}

int ended(pid_t child)
{
    int status;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* -- signals ------------------------------------------------------------------------------------ */

static void on_signal(int number)
{
    (void)number;
    signals_seen++;
}

void count_signal(int number, int flags)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = flags};
    signals_seen = 0;
    sigaction(number, &action, NULL);
}

void alarm_in(int milliseconds)
{
    struct itimerval timer = {{0, 0}, {milliseconds / 1000, milliseconds % 1000 * 1000}};
    setitimer(ITIMER_REAL, &timer, NULL);
}

void ignore_sigpipe(void)
{
    signal(SIGPIPE, SIG_IGN);
}

static void nothing(int number)
{
    (void)number;
}

/* A signal every so many microseconds, until the process ends; not inherited by its children. */
static void start_storm(long microseconds)
{
    struct sigaction action = {.sa_handler = nothing, .sa_flags = SA_RESTART};
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2};
    struct itimerspec often = {{0, microseconds * 1000}, {0, microseconds * 1000}};
    timer_t timer;
    sigaction(SIGUSR2, &action, NULL);
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, 0, &often, NULL))
        give_up("timer");
}

/* -- running ------------------------------------------------------------------------------------ */

static int wait_until(pid_t child, long end)
{
    int status;
    while (now_ms() < end) {
        if (waitpid(child, &status, WNOHANG) == child)
            return status;
        nap(1);
    }
    return -1;
}

static void run_case(int index)
{
    current = cases[index].name;
    *said = 0;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (storm && !(cases[index].flags & CALM))
            start_storm(storm);
        cases[index].run();
        exit(0);
    }
    setpgid(child, child);
    int status = wait_until(child, now_ms() + CASE_MS);
    if (status < 0) {
        append("end", "goes on and on");
        kill(-child, SIGKILL);
        waitpid(child, &status, 0);
    } else if (WIFSIGNALED(status))
        say("end", "killed by signal %d", WTERMSIG(status));
    else
        kill(-child, SIGKILL); /* whatever it left behind */
    fputs(said, stdout);
    fflush(stdout);
}

static struct address parse(const char *text)
{
    struct address address;
    memset(&address, 0, sizeof address);
    struct sockaddr_in *four = (struct sockaddr_in *)&address.storage;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)&address.storage;
    if (inet_pton(AF_INET, text, &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        address.length = sizeof *four;
    } else if (inet_pton(AF_INET6, text, &six->sin6_addr) == 1) {
        six->sin6_family = AF_INET6;
        address.length = sizeof *six;
    } else {
        fprintf(stderr, "behaviour: %s is no address\n", text);
        exit(2);
    }
    return address;
}

static bool wanted(const char *name, int argc, char **argv)
{
    for (int i = 0; i < argc; i++)
        if (!strcmp(argv[i], name))
            return true;
    return argc == 0;
}

int main(int argc, char **argv)
{
    const char *connect_text = "127.0.0.1", *bind_text = NULL;
    bool list = false;
    int option;
    while ((option = getopt(argc, argv, "c:b:s:l")) >= 0) {
        if (option == 'c')
            connect_text = optarg;
        else if (option == 'b')
            bind_text = optarg;
        else if (option == 's')
            storm = atol(optarg);
        else if (option == 'l')
            list = true;
        else
            return 2;
    }
    connect_address = parse(connect_text);
    bind_address = parse(bind_text ? bind_text : connect_text);
    said = mmap(NULL, ROOM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < count; i++) {
        if (list)
            puts(cases[i].name);
        else if (wanted(cases[i].name, argc - optind, argv + optind))
            run_case(i);
    }
    return 0;
}
