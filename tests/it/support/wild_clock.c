/* For LD_PRELOAD: while the file that WILD_CLOCK names is there, the time of day is one that no calendar holds. The first
   word on standard error takes the file away. */
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now)
{
    const char *wild = clock == CLOCK_REALTIME ? getenv("WILD_CLOCK") : NULL;
    if (wild != NULL && access(wild, F_OK) == 0) {
        now->tv_sec = -1000000000000;
        now->tv_nsec = 0;
        return 0;
    }
    return syscall(SYS_clock_gettime, clock, now);
}

ssize_t write(int file, const void *bytes, size_t count)
{
    const char *wild = file == STDERR_FILENO ? getenv("WILD_CLOCK") : NULL;
    if (wild != NULL)
        unlink(wild);
    return syscall(SYS_write, file, bytes, count);
}
