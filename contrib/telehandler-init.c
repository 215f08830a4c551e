/* A job's init, pid 1 of its pid namespace: starts the command, reaps orphans, passes signals on, reports the end.
 *
 * The helper executes it as the job's uid, without privileges, under the job's filter and with every signal blocked:
 *     telehandler-init DIRECTORY COMMAND [ARGUMENT]...
 * and the job's environment. It does what helper/init.py does, by the same two pipes, in a few pages of
 * memory instead of a copy of the helper's. No libc: a start pays for what that sets up, and none of it is needed. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { STATUS_FD = 3, RESULT_FD = 4, FAILED = 125 };     /* as in helper/init.py */
enum { STAGE_CLONE = 17, STAGE_CHDIR = 21, STAGE_EXEC = 22 }; /* as in helper/wire.py */
enum { LAST_SIGNAL = 64, MASK_BYTES = 8, CARRIER = LAST_SIGNAL };

static long call(long number, long a, long b, long c, long d)
{
    register long fourth __asm__("r10") = d;
    __asm__ volatile("syscall" : "+a"(number) : "D"(a), "S"(b), "d"(c), "r"(fourth) : "rcx", "r11", "memory");
    return number;
}

static _Noreturn void leave(int status)
{
    for (;;)
        call(SYS_exit_group, status, 0, 0, 0);
}

/* Tells the helper which step failed; `result` is the system call's, minus an errno. */
static _Noreturn void fail(int stage, long result)
{
    int report[2] = {stage, (int)-result};
    call(SYS_write, STATUS_FD, (long)report, sizeof report, 0);
    leave(FAILED);
}

/* A system call without which nothing may run. */
static long must(int stage, long number, long a, long b, long c, long d)
{
    long result = call(number, a, b, c, d);
    if (result < 0)
        fail(stage, result);
    return result;
}

/* What follows `prefix` in `text`; null when it does not begin so. */
static const char *after(const char *text, const char *prefix)
{
    while (*prefix)
        if (*text++ != *prefix++)
            return 0;
    return text;
}

/* Its own session, with the job's terminal if there is one; its directory, resolved as the job's uid. */
static void enter(const char *directory)
{
    static char here[PATH_MAX + 1];
    long result;
    must(STAGE_CHDIR, SYS_close, RESULT_FD, 0, 0, 0);
    must(STAGE_CHDIR, SYS_setsid, 0, 0, 0, 0);
    call(SYS_ioctl, 0, TIOCSCTTY, 0, 0); /* fails where stdin is no terminal */
    must(STAGE_CHDIR, SYS_chdir, (long)directory, 0, 0, 0);
    result = must(STAGE_CHDIR, SYS_getcwd, (long)here, PATH_MAX, 0, 0);
    here[result - 1] = '/'; /* the length has the NUL in it */
    /* "(unreachable)" is outside the root: CVE-2024-21626. /proc by another name: refused as by its own. */
    if (here[0] != '/' || after(here, "/proc/"))
        fail(STAGE_CHDIR, -EINVAL);
}

/* As exec(3) with PATH does, but never by a shell: the result of the call that counts. */
static long execute(char **argv, char **env)
{
    static char name[PATH_MAX];
    const char *path = "/bin:/usr/bin", *found, *from;
    long result, last = -ENOENT, other = 0;
    for (from = argv[0]; *from; from++)
        if (*from == '/')
            return call(SYS_execve, (long)argv[0], (long)argv, (long)env, 0);
    for (char **entry = env; *entry; entry++)
        if ((found = after(*entry, "PATH=")))
            path = found;
    for (;; path++) {
        unsigned used = 0;
        for (; *path && *path != ':'; path++)
            if (used < sizeof name)
                name[used++] = *path;
        if (used && used < sizeof name) /* an empty one is the working directory */
            name[used++] = '/';
        for (from = argv[0]; *from && used < sizeof name; from++)
            name[used++] = *from;
        if (used < sizeof name) {
            name[used] = 0;
            result = call(SYS_execve, (long)name, (long)argv, (long)env, 0);
        } else {
            result = -ENAMETOOLONG;
        }
        if (result == -ENOENT || result == -ENOTDIR)
            last = result;
        else if (!other)
            other = result;
        if (!*path)
            return other ? other : last;
    }
}

static _Noreturn void become_main(const char *directory, char **argv, char **env)
{
    static const long zero[4]; /* struct sigaction: SIG_DFL; and an empty mask */
    enter(directory);
    for (int number = 1; number <= LAST_SIGNAL; number++)
        if (number != SIGKILL && number != SIGSTOP)
            must(STAGE_EXEC, SYS_rt_sigaction, number, (long)zero, 0, MASK_BYTES);
    must(STAGE_EXEC, SYS_rt_sigprocmask, SIG_SETMASK, (long)zero, 0, MASK_BYTES);
    if (call(SYS_write, STATUS_FD, (long)"E", 1, 0) != 1) /* the helper is gone */
        leave(FAILED);
    fail(STAGE_EXEC, execute(argv, env));
}

static int is_terminal(int fd)
{
    static struct winsize size;
    return call(SYS_ioctl, fd, TIOCGWINSZ, (long)&size, 0) == 0;
}

static _Noreturn void serve(long main_pid)
{
    static const unsigned long all = ~0UL;
    siginfo_t info;
    int status;
    for (;;) {
        long pid, number = call(SYS_rt_sigtimedwait, (long)&all, (long)&info, 0, MASK_BYTES);
        if (number > 0 && number != SIGCHLD) {
            if (number == CARRIER && info.si_code == SI_QUEUE) /* see CARRIED in helper/init.py */
                number = info.si_value.sival_int;
            /* What a terminal sends goes to the whole group, as from a terminal. */
            call(SYS_kill, number == SIGINT || number == SIGQUIT ? -main_pid : main_pid, number, 0, 0);
        }
        while (number == SIGCHLD && (pid = call(SYS_wait4, -1, (long)&status, WNOHANG, 0)) != 0) {
            if (pid > 0 && WIFSTOPPED(status)) /* of who let its init trace it: ptrace(2) */
                continue;
            if (pid == main_pid)
                call(SYS_write, RESULT_FD, (long)&status, sizeof status, 0);
            if (pid == main_pid || pid < 0) /* the latter cannot be: then nobody knows of the end */
                leave(pid < 0 ? FAILED : 0); /* the kernel ends the rest */
        }
    }
}

_Noreturn void begin(long *stack)
{
    char **argv = (char **)(stack + 1), **env = argv + stack[0] + 1;
    long pid;
    if (stack[0] < 3)
        leave(FAILED);
    /* First: the main process must not write our memory or take our fds. */
    must(STAGE_CLONE, SYS_prctl, PR_SET_DUMPABLE, 0, 0, 0);
    must(STAGE_CLONE, SYS_prctl, PR_SET_NAME, (long)"telehandler-ini", 0, 0);
    for (int fd = STATUS_FD; fd <= RESULT_FD; fd++)
        must(STAGE_CLONE, SYS_fcntl, fd, F_SETFD, FD_CLOEXEC, 0);
    if ((pid = must(STAGE_CLONE, SYS_fork, 0, 0, 0, 0)) == 0)
        become_main(argv[1], argv + 2, env);
    /* The words are the command's: who looks for it by them must not find us. Before the close that STARTED waits for. */
    for (char **word = argv + 1; *word; word++)
        for (char *byte = *word; *byte; byte++)
            *byte = 0;
    /* A terminal stays open: who reads from it finds its end only at the job's. */
    for (int fd = is_terminal(0) ? 1 : 0; fd < RESULT_FD; fd++)
        call(SYS_close, fd, 0, 0, 0);
    serve(pid);
}

__asm__(".globl _start\n_start: xor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall begin\n");
