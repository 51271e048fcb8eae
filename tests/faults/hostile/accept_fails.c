/* Preloaded into a broker, it lets accepting fail although somebody is there: what is in ACCEPT_FAILS ("ERRNO:COUNT")
   so often, each time with a byte more in the file ACCEPT_LOG. Nobody is taken out of the kernel's queue by that. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static int failed;

static int fails(int fd) {
    const char *what = getenv("ACCEPT_FAILS"), *log = getenv("ACCEPT_LOG");
    struct pollfd one = {.fd = fd, .events = POLLIN};
    int error, count, file;
    if (!what || sscanf(what, "%d:%d", &error, &count) != 2 || failed >= count)
        return 0;
    if (poll(&one, 1, 0) != 1)
        return 0;
    failed += 1;
    if (log && (file = open(log, O_WRONLY | O_APPEND | O_CREAT, 0600)) >= 0) {
        if (write(file, ".", 1) != 1)
            abort();
        close(file);
    }
    errno = error;
    return 1;
}

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags) {
    static int (*real)(int, struct sockaddr *, socklen_t *, int);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "accept4");
    return fails(fd) ? -1 : real(fd, address, length, flags);
}
