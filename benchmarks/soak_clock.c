/* A clock that is CLOCK_BACK seconds behind, for programs that are started with it in LD_PRELOAD.
 * libfaketime 0.9.10 breaks Python's time.sleep, whose ends are times of the monotonic clock. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    const char *back = getenv("CLOCK_BACK");
    if (!failed && back && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec -= atol(back);
    return failed;
}
