/* Loaded into a process (LD_PRELOAD), counts its calls that change files below FAULT_DIR, and at the FAULT_AT-th
 * kills it, or makes that call fail with FAULT_ERRNO. The count goes to the file FAULT_REPORT at the end. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int calls;
static char tracked[4096];

static int below(const char *path) {
    const char *dir = getenv("FAULT_DIR");
    return dir && (path[0] != '/' || strncmp(path, dir, strlen(dir)) == 0);
}

/* Whether this call is to fail. */
static int hit(void) {
    const char *at = getenv("FAULT_AT"), *error = getenv("FAULT_ERRNO");
    int call = __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
    if (!at || call != atoi(at)) return 0;
    if (!error) kill(getpid(), SIGKILL);
    errno = atoi(error);
    return 1;
}

__attribute__((destructor)) static void report(void) {
    const char *path = getenv("FAULT_REPORT");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (file) { fprintf(file, "%d", calls); fclose(file); }
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static int opened(int fd, int changes) {
    if (fd >= 0 && fd < (int)sizeof tracked) tracked[fd] = changes;
    return fd;
}

#define OPEN(name, type)                                                        \
    int name(const char *path, int flags, ...) {                                \
        REAL(name);                                                             \
        va_list more; va_start(more, flags);                                    \
        mode_t mode = va_arg(more, mode_t); va_end(more);                       \
        int changes = (flags & (O_WRONLY | O_RDWR | O_CREAT)) && below(path);   \
        if (changes && hit()) return -1;                                        \
        return opened(real(path, flags, mode), changes);                        \
    }
OPEN(open, 0)
OPEN(open64, 0)

#define ON_FD(result, name, parameters, arguments)                              \
    result name parameters {                                                    \
        REAL(name);                                                             \
        if (fd >= 0 && fd < (int)sizeof tracked && tracked[fd] && hit()) return -1; \
        return real arguments;                                                  \
    }
ON_FD(ssize_t, write, (int fd, const void *from, size_t count), (fd, from, count))
ON_FD(ssize_t, writev, (int fd, const struct iovec *from, int count), (fd, from, count))
ON_FD(int, ftruncate, (int fd, off_t length), (fd, length))
ON_FD(int, ftruncate64, (int fd, off64_t length), (fd, length))
ON_FD(int, fsync, (int fd), (fd))
ON_FD(int, fdatasync, (int fd), (fd))

#define ON_PATH(name, parameters, arguments)                                    \
    int name parameters {                                                       \
        REAL(name);                                                             \
        if (below(path) && hit()) return -1;                                    \
        return real arguments;                                                  \
    }
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode))
ON_PATH(rmdir, (const char *path), (path))
ON_PATH(unlink, (const char *path), (path))
ON_PATH(rename, (const char *path, const char *to), (path, to))
