/* Preloaded into a broker, it makes each sync take SYNC_MS once the file SYNC_LOG exists, as a card does that tidies
   itself up, and counts in that file how often the broker asks what has happened: a byte for each. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

static int opened(void) {
    const char *log = getenv("SYNC_LOG");
    return log ? open(log, O_WRONLY | O_APPEND) : -1;
}

int fdatasync(int fd) {
    static int (*real)(int);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "fdatasync");
    int log = opened();
    if (log >= 0) {
        close(log);
        usleep(1000 * atoi(getenv("SYNC_MS")));
    }
    return real(fd);
}

int epoll_wait(int fd, struct epoll_event *events, int most, int timeout) {
    static int (*real)(int, struct epoll_event *, int, int);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "epoll_wait");
    int log = opened();
    if (log >= 0) {
        if (write(log, ".", 1) != 1)
            abort();
        close(log);
    }
    return real(fd, events, most, timeout);
}
