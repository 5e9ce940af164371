/*
 * A disk that hangs: loaded before the C library by LD_PRELOAD, it holds up writes and syncs of
 * files below the directory STALL_BELOW while the file STALL_WHILE exists, and makes the file
 * STALL_HIT when it has held up the first one.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static int is_below(int fd, const char *directory) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) {
        return 0;
    }
    path[length] = 0;
    size_t above = strlen(directory);
    return strncmp(path, directory, above) == 0 && path[above] == '/';
}

static void wait_for_disk(int fd) {
    const char *directory = getenv("STALL_BELOW"), *control = getenv("STALL_WHILE");
    const char *hit = getenv("STALL_HIT");
    int before = errno;
    if (directory && control && hit && access(control, F_OK) == 0 && is_below(fd, directory)) {
        close(open(hit, O_CREAT | O_WRONLY, 0644));
        while (access(control, F_OK) == 0) {
            usleep(2000);
        }
    }
    errno = before;
}

/* The C library's function of this name. */
#define NEXT(name) \
    static __typeof__(&name) next; \
    if (!next) { \
        next = (__typeof__(&name))dlsym(RTLD_NEXT, #name); \
    }

ssize_t write(int fd, const void *bytes, size_t count) {
    NEXT(write)
    wait_for_disk(fd);
    return next(fd, bytes, count);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    NEXT(writev)
    wait_for_disk(fd);
    return next(fd, parts, count);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset) {
    NEXT(pwrite)
    wait_for_disk(fd);
    return next(fd, bytes, count, offset);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset) {
    NEXT(pwrite64)
    wait_for_disk(fd);
    return next(fd, bytes, count, offset);
}

int fsync(int fd) {
    NEXT(fsync)
    wait_for_disk(fd);
    return next(fd);
}

int fdatasync(int fd) {
    NEXT(fdatasync)
    wait_for_disk(fd);
    return next(fd);
}

int syncfs(int fd) {
    NEXT(syncfs)
    wait_for_disk(fd);
    return next(fd);
}
