/* Preloaded into a broker, it makes one block of one file one that the disk refuses to read (EIO), as a card does
   with a sector that is worn. REFUSE says which: "NAME:BLOCK". What lies before it in the same call is read. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 4096 };

/* The refused block when the file is the one named, else -1. */
static long refused(int fd) {
    char name[64], path[64], target[512];
    long block;
    const char *what = getenv("REFUSE");
    if (!what || sscanf(what, "%63[^:]:%ld", name, &block) != 2)
        return -1;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(path, target, sizeof target - 1);
    if (length < 0)
        return -1;
    target[length] = 0;
    return strstr(target, name) ? block : -1;
}

ssize_t pread64(int fd, void *bytes, size_t count, off_t at) {
    static ssize_t (*real)(int, void *, size_t, off_t);
    if (!real)
        real = (ssize_t(*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread64");
    long block = refused(fd);
    if (block >= 0 && at < (block + 1) * BLOCK && at + (off_t)count > block * BLOCK) {
        if (at < block * BLOCK)
            return real(fd, bytes, block * BLOCK - at, at);
        errno = EIO;
        return -1;
    }
    return real(fd, bytes, count, at);
}

ssize_t pread(int fd, void *bytes, size_t count, off_t at) {
    return pread64(fd, bytes, count, at);
}
