/* The setuid way in to the helper: installed root:telehandler, mode 4750, by `make install`.
 *
 * It takes nothing from its caller but fds 0 to 2: no argument, no variable, no signal setting, no limit, no timer.
 * A limit could leave a process of root's that can neither go on nor end.
 * The one fact it passes on is who called (SUDO_UID, as sudo does), since the helper must know whose
 * socket it may serve. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

enum { EXIT_SETUP = 125, MAX_GROUPS = 65536 };

static void fail(const char *why)
{
    dprintf(2, "telehandler-helper: %s\n", why);
    _exit(EXIT_SETUP);
}

/* Of the group that owns this very file, which is opened by the kernel's link, not by name. The mode says the
 * same; this holds when somebody has widened it. No name service is asked: its modules would run as root. */
static int may_call(void)
{
    static gid_t groups[MAX_GROUPS];
    struct stat self;
    int count = getgroups(MAX_GROUPS, groups);
    if (stat("/proc/self/exe", &self) != 0 || count < 0)
        return 0;
    if (getuid() == 0 || getgid() == self.st_gid)
        return 1;
    while (count-- > 0)
        if (groups[count] == self.st_gid)
            return 1;
    return 0;
}

/* Every limit, soft and hard: none, but for those that have a value of their own. Where root may not raise a hard
 * limit, as in some containers, one is left as it is; but not one that can keep a process from going on. */
static int reset_limits(void)
{
    static const struct rlimit none = {0, 0}, stack = {8 << 20, RLIM_INFINITY}, files = {1 << 20, 1 << 20};
    for (int kind = 0; kind < RLIM_NLIMITS; kind++) {
        struct rlimit limit = {RLIM_INFINITY, RLIM_INFINITY};
        if (kind == RLIMIT_CORE || kind == RLIMIT_NICE || kind == RLIMIT_RTPRIO)
            limit = none;
        else if (kind == RLIMIT_STACK)
            limit = stack;
        else if (kind == RLIMIT_NOFILE)
            limit = files;
        if (setrlimit(kind, &limit) != 0 && (kind == RLIMIT_DATA || kind == RLIMIT_AS || kind == RLIMIT_STACK ||
                                             kind == RLIMIT_CPU || kind == RLIMIT_FSIZE || kind == RLIMIT_RTTIME))
            return -1;
    }
    return 0;
}

/* A timer would outlive exec, and end us. */
static int stop_timers(void)
{
    static const struct itimerval never;
    return setitimer(ITIMER_REAL, &never, NULL) | setitimer(ITIMER_VIRTUAL, &never, NULL) |
           setitimer(ITIMER_PROF, &never, NULL);
}

int main(int argc, char **argv)
{
    char caller[32];
    char *const args[] = {"/usr/bin/python3", "-I", "-S", HELPER, NULL};
    char *const env[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", caller, NULL};
    sigset_t none;

    (void)argv;
    for (int fd = 0; fd <= 2; fd++) /* a free one would be the next file that root opens */
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
            _exit(EXIT_SETUP);
    if (close_range(3, ~0U, 0) != 0)
        fail("cannot close inherited files: Linux 5.9 or later is needed");
    if (argc > 1)
        fail("no arguments are taken");
    if (geteuid() != 0)
        fail("not setuid root, or started under no_new_privs: make install sets it up");
    if (!may_call())
        fail("you are not in the group of this program: ask root to add you (usermod --append --groups)");
    snprintf(caller, sizeof caller, "SUDO_UID=%u", (unsigned)getuid());
    sigemptyset(&none);
    if (stop_timers() != 0)
        fail("cannot stop the caller's timers");
    for (int number = 1; number < NSIG; number++) { /* an ignored SIGCHLD would outlive exec */
        signal(number, SIG_IGN);                    /* one that is pending goes */
        signal(number, SIG_DFL);
    }
    umask(077);
    /* Groups and gid while still privileged, the uid last; setresuid read back, since a failure is fatal. */
    if (reset_limits() != 0)
        fail("a limit of yours (ulimit -H) cannot be raised by root here: start it without");
    if (sigprocmask(SIG_SETMASK, &none, NULL) != 0 || chdir("/") != 0 ||
        setgroups(0, NULL) != 0 || setresgid(0, 0, 0) != 0 || setresuid(0, 0, 0) != 0 || getuid() != 0 || getgid() != 0)
        fail("cannot become root");
    execve(args[0], args, env);
    fail("cannot execute /usr/bin/python3");
}
