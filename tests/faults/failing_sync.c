/* Loaded before a process's own libraries: fsync and fdatasync of files whose path ends with
   $FAILING_SYNC_OF fail as the file $FAILING_SYNC_FAULT says, "ERRNO TIMES", while it exists. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fault(int descriptor) {
    char link[64], path[4096];
    const char *ending = getenv("FAILING_SYNC_OF"), *file = getenv("FAILING_SYNC_FAULT");
    int number = 0, times = 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (!ending || !file || length < 0) return 0;
    path[length] = 0;
    size_t tail = strlen(ending);
    if ((size_t)length < tail || strcmp(path + length - tail, ending)) return 0;
    FILE *said = fopen(file, "r");
    if (!said) return 0;
    int read = fscanf(said, "%d %d", &number, &times);
    fclose(said);
    if (read != 2) return 0;
    if (--times <= 0) unlink(file);
    else if ((said = fopen(file, "w"))) { fprintf(said, "%d %d", number, times); fclose(said); }
    return number;
}

#define FAILING(name)                                                        \
    int name(int descriptor) {                                               \
        static int (*next)(int);                                             \
        if (!next) next = (int (*)(int))dlsym(RTLD_NEXT, #name);             \
        int number = fault(descriptor);                                      \
        if (number) { errno = number; return -1; }                           \
        return next(descriptor);                                             \
    }

FAILING(fsync)
FAILING(fdatasync)
