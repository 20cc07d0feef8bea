/* Calls a kernel and reads the clocks, with no interpreter in between. */
#define _GNU_SOURCE
#include <fenv.h>
#include <stdint.h>
#include <time.h>

static int64_t now_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

#define P void *
#define CALL(n, types, ...) \
    case n: ((void (*) types)kernel)(__VA_ARGS__); break

static void call(void *kernel, void **a, int n_args)
{
    switch (n_args) {
        CALL(1, (P), a[0]);
        CALL(2, (P, P), a[0], a[1]);
        CALL(3, (P, P, P), a[0], a[1], a[2]);
        CALL(4, (P, P, P, P), a[0], a[1], a[2], a[3]);
        CALL(5, (P, P, P, P, P), a[0], a[1], a[2], a[3], a[4]);
        CALL(6, (P, P, P, P, P, P), a[0], a[1], a[2], a[3], a[4], a[5]);
        CALL(7, (P, P, P, P, P, P, P), a[0], a[1], a[2], a[3], a[4], a[5], a[6]);
        CALL(8, (P, P, P, P, P, P, P, P), a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
        CALL(9, (P, P, P, P, P, P, P, P, P), a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8]);
        CALL(10, (P, P, P, P, P, P, P, P, P, P), a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9]);
        CALL(11, (P, P, P, P, P, P, P, P, P, P, P),
             a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10]);
        CALL(12, (P, P, P, P, P, P, P, P, P, P, P, P),
             a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11]);
    }
}

/* A library linked with -ffast-math switches denormals off for the thread that loads it, and a
   kernel may do the same; neither may speed up or spoil what runs next. */
void evotune_default_fp(void)
{
    fesetenv(FE_DFL_ENV);
}

/* Calls the kernel so many times, each time with the next of several sets of arguments, so that it
   cannot keep the result for the last ones. ns: thread CPU, process CPU and wall time together. */
void evotune_time(void *kernel, void **sets, int n_sets, int n_args, int64_t first, int64_t calls, int64_t ns[3])
{
    int set = (int)(first % n_sets);
    evotune_default_fp();
    ns[2] = now_ns(CLOCK_MONOTONIC);
    ns[1] = now_ns(CLOCK_PROCESS_CPUTIME_ID);
    ns[0] = now_ns(CLOCK_THREAD_CPUTIME_ID);
    for (int64_t i = 0; i < calls; i++) {
        call(kernel, sets + set * n_args, n_args);
        set = set + 1 == n_sets ? 0 : set + 1;
    }
    ns[0] = now_ns(CLOCK_THREAD_CPUTIME_ID) - ns[0];
    ns[1] = now_ns(CLOCK_PROCESS_CPUTIME_ID) - ns[1];
    ns[2] = now_ns(CLOCK_MONOTONIC) - ns[2];
    evotune_default_fp();
}

/* A kernel with a known answer: out[i] = sum of (i + k)^2 for k < 1000, modulo 2^32. */
void evotune_canary(const uint32_t *in, uint32_t *out)
{
    for (int i = 0; i < 256; i++) {
        uint32_t sum = 0;
        for (uint32_t k = 0; k < 1000; k++)
            sum += (in[i] + k) * (in[i] + k);
        out[i] = sum;
    }
}
