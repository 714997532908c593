/* What a power cut leaves behind, by the letter of POSIX: preloaded into a process, it keeps beside the real file tree a record of what
 * fsync and fdatasync have covered, in $DURABLE_RECORD:
 *
 *     data/<inode>      a file's bytes as of its last sync
 *     names/<inode>     a folder's entries as of its last sync: one "<inode>\t<d|f>\t<name>\n" a line
 *
 * An inode is named <number>.<birth time in ns>, since numbers are used again. Whatever no sync covered (bytes, new names,
 * renames, links, removals) is not in the record. $DURABLE_DEAF, if set, is a part of paths whose syncs are ignored: for seeing a
 * test fail. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int identity(int at, const char *path, int flags, char *out, size_t size, mode_t *mode) {
    struct statx s;
    if (statx(at, path, flags | AT_SYMLINK_NOFOLLOW, STATX_INO | STATX_BTIME | STATX_TYPE, &s) != 0) return -1;
    if (mode) *mode = s.stx_mode;
    snprintf(out, size, "%llu.%lld%09u", (unsigned long long)s.stx_ino, (long long)s.stx_btime.tv_sec, s.stx_btime.tv_nsec);
    return 0;
}

static int copy(int from, int to) {
    char buffer[1 << 16];
    off_t at = 0;
    for (;;) {
        ssize_t n = pread(from, buffer, sizeof buffer, at);
        if (n <= 0) return (int)n;
        for (ssize_t done = 0; done < n;) {
            ssize_t w = write(to, buffer + done, (size_t)(n - done));
            if (w < 0) return -1;
            done += w;
        }
        at += n;
    }
}

static int list(int folder, int to) {
    int again = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = again < 0 ? NULL : fdopendir(again);
    if (!dir) return -1;
    struct dirent *entry;
    while ((entry = readdir(dir))) {
        char id[64];
        mode_t mode;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (identity(folder, entry->d_name, 0, id, sizeof id, &mode) != 0) continue;
        dprintf(to, "%s\t%c\t%s\n", id, S_ISDIR(mode) ? 'd' : 'f', entry->d_name);
    }
    closedir(dir);
    return 0;
}

static void record(int fd) {
    const char *root = getenv("DURABLE_RECORD"), *deaf = getenv("DURABLE_DEAF");
    char id[64], link[64], path[PATH_MAX], part[PATH_MAX], whole[PATH_MAX];
    mode_t mode;
    if (!root || identity(fd, "", AT_EMPTY_PATH, id, sizeof id, &mode) != 0) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return;
    path[n] = 0;
    if (deaf && *deaf && strstr(path, deaf)) return;
    int folder = S_ISDIR(mode);
    snprintf(whole, sizeof whole, "%s/%s/%s", root, folder ? "names" : "data", id);
    snprintf(part, sizeof part, "%s/part.%d.%ld", root, getpid(), (long)syscall(SYS_gettid));
    int from = open(link, O_RDONLY | O_CLOEXEC); /* the caller's may be for writing only */
    int to = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (to >= 0 && from >= 0 && (folder ? list(fd, to) : copy(from, to)) == 0) rename(part, whole);
    if (from >= 0) close(from);
    if (to >= 0) close(to);
}

static int synced(const char *name, int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    int result = real(fd), error = errno;
    if (result == 0) record(fd);
    errno = error;
    return result;
}

int fsync(int fd) { return synced("fsync", fd); }
int fdatasync(int fd) { return synced("fdatasync", fd); }
