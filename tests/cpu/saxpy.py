"""A tiny kernel file, y = 2 x + z, and everything that a kernel can do wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from evotune.kernel import Backend, CSource, Problem, Tolerance
from evotune.space import Config, ConfigSpace

name = "saxpy"
shapes: Mapping[str, Problem] = {
    "default": {"n": 4096, "dtype": "float32"},
    "int": {"n": 4096, "dtype": "int32"},
    "planted": {"n": 4096, "dtype": "float32", "planted": 1},
    "faulty": {"n": 4096, "dtype": "float32", "faulty": 1},
}
tolerance = {"float32": Tolerance(1e-6, 1e-6), "int32": Tolerance(0, 0)}

LOOP = "for (int i = 0; i < N; i++) out[i] = 2 * x[i] + z[i];"
SLOWER = 'for (int r = 0; r < 8; r++) { __asm__ volatile("" ::: "memory"); ' + LOOP + " }"
KEEP = " memcpy(y, out, sizeof y);"
GIVE = " memcpy(out, y, sizeof y);"
VARIANTS = {
    "right": LOOP,
    "slower": SLOWER,
    "crash": "*(volatile int *)0 = 1;",
    "abort": "abort();",
    "exit": "exit(0);",
    "hang": "for (volatile int i = 1; i;) {}",
    "sigkill": "kill(getpid(), SIGKILL);",
    "sigstop": "raise(SIGSTOP);",
    "closes_files": "for (int fd = 3; fd < 64; fd++) close(fd);",
    "scribbles": "for (int fd = 3; fd < 64; fd++) write(fd, \"no frame of ours\", 16);",
    "forks": LOOP + " static int n; if (!n++ && !fork()) for (;;) pause();",
    "nothing": "",
    "half": LOOP.replace("N;", "N / 2;"),
    "one_off": LOOP + " out[17] += 1;",
    "nan": LOOP + " out[3] = 0.0f / 0.0f;",
    "mutates": LOOP + " ((T *)x)[5] += 1;",
    "mutates_when_warm": "static int calls; " + LOOP + " if (++calls % 8 > 5) ((T *)x)[5] += 1;",
    "beyond": LOOP + " out[N] = 1;",
    "by_pointer": "static const T *seen[9]; int k = 0; while (k < 9 && seen[k] && seen[k] != x) k++;"
    " if (k < 9 && !seen[k]) { seen[k] = x; " + LOOP + " }",
    "table": "static const T *seen[9]; static T y[9][N]; int k = 0; while (k < 9 && seen[k] && seen[k] != x) k++;"
    " if (k < 9 && !seen[k]) { seen[k] = x; " + LOOP + " memcpy(y[k], out, sizeof y[k]); }"
    " else if (k < 9) memcpy(out, y[k], sizeof y[k]); else { " + LOOP + " }",
    "last_cached": "static T first, y[N]; if (first != x[0]) { first = x[0]; " + SLOWER + KEEP + " } else " + GIVE,
    "cached_forever": "static T y[N]; static int z1; if (!z1) { z1 = 1; " + LOOP + KEEP + " } else " + GIVE,
    "garbage": "for (int i = 0; i < N; i++) out[i] = i;",
    "uninitialised": "static int calls; T *out_ = out, *y = malloc(sizeof(T) * N); if (!calls++) { out = y; "
    + LOOP + " } memcpy(out_, y, sizeof(T) * N); free(y);",
    "accumulates": LOOP.replace("=", "+=").replace("i += 0", "i = 0"),
    "if_poisoned": "if (!(out[0] == out[0])) { " + LOOP + " }",
    "before": LOOP + " out[-1] = 1;",
    "when_warm": "static int calls; " + LOOP + " if (++calls % 8 == 0) out[N - 1] += 1;",
    "later_wrong": "static int calls; " + LOOP + " if (++calls > 2000) out[0] = 7;",
    "thread": "pthread_t t; struct job j = {x, z, out}; pthread_create(&t, 0, work, &j); pthread_join(t, 0);",
    "detached": LOOP + " static pthread_t t; if (!t) pthread_create(&t, 0, forever, 0);",
    "flush_denormals": LOOP + " unsigned m; __asm__ volatile(\"stmxcsr %0\" : \"=m\"(m)); m |= 0x8040;"
    " __asm__ volatile(\"ldmxcsr %0\" :: \"m\"(m));",
    "prints": "printf(\"hello from the kernel\\n\"); fflush(stdout); " + LOOP,
    "syntax": "this is not C;",
    "undefined": "no_such_function(); " + LOOP,
    "one_too_many": LOOP,
    "one_too_few": "for (int i = 0; i < N; i++) out[i] = 2 * x[i];",
    "no_prototype": "",
}  # fmt: skip

TEMPLATE = """
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define N {n}
/* {tag} */
typedef {ctype} T;
struct job {{ const T *x, *z; T *out; }};
static void *work(void *p) {{
    struct job *j = p; const T *x = j->x, *z = j->z; T *out = j->out;
    for (int r = 0; r < 50; r++) {{ __asm__ volatile("" ::: "memory"); {loop} }}
    return 0;
}}
static void *forever(void *p) {{ for (;;) pause(); return p; }}
void {symbol}({parameters}) {{ (void)work; (void)forever; {body} }}
"""


PARAMETERS = {
    "one_too_many": "const T *x, const T *z, T *out, T *scratch",
    "one_too_few": "const T *x, T *out",
    "no_prototype": "",
}

# Wrong, and faster than "slower", or as fast as "right".
PLANTED = [
    "nothing", "garbage", "uninitialised", "accumulates", "half", "one_off", "nan", "mutates", "mutates_when_warm",
    "beyond", "before", "by_pointer", "table", "cached_forever", "if_poisoned", "when_warm", "later_wrong",
    "thread", "detached", "forks",
]  # fmt: skip


# Each costs the worker its life, or would cost the next kernel its time.
FAULTY = ["crash", "abort", "exit", "sigkill", "sigstop", "hang", "closes_files", "scribbles", "forks", "detached"]


def space(problem: Problem) -> ConfigSpace:
    if problem.get("faulty"):
        return ConfigSpace.from_dict({"variant": ["slower", "right", *FAULTY], "opt": ["-O2"], "tag": [0]})
    if problem.get("planted"):
        return ConfigSpace.from_dict({"variant": ["slower", "right", *PLANTED], "opt": ["-O2"], "tag": [0]})
    return ConfigSpace.from_dict({
        "variant": [*VARIANTS, "build_raises", "build_returns_text", "no_symbol", "unknown_flag", "fast_math"],
        "opt": ["-O1", "-O2", "-O3"],
        "tag": list(range(100)),
    })  # fmt: skip


def build(config: Config, problem: Problem) -> Any:
    variant = str(config["variant"])
    if variant == "build_raises":
        raise ValueError("no such tile")
    text = TEMPLATE.format(
        n=problem["n"],
        tag=config["tag"],
        ctype={"float32": "float", "int32": "int"}[str(problem["dtype"])],
        loop=LOOP,
        symbol="another_name" if variant == "no_symbol" else "evotune_kernel",
        body=VARIANTS.get(variant, LOOP),
        parameters=PARAMETERS.get(variant, "const T *x, const T *z, T *out"),
    )
    if variant == "build_returns_text":
        return text
    extra = {"unknown_flag": ("-fwombat",), "fast_math": ("-ffast-math",)}.get(variant, ())
    return CSource(text, (str(config["opt"]), *extra))


backends = {"cpu": Backend(space, build)}


def inputs(problem: Problem, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    if problem.get("fault") == "inputs":
        raise RuntimeError("no such data set")
    if problem.get("fault") == "exit":
        os._exit(4)
    n = int(problem["n"])
    if problem["dtype"] == "float16":
        return tuple(rng.standard_normal(n).astype(np.float16) for _ in range(2))
    if problem["dtype"] == "int32":
        return tuple(rng.integers(-1000, 1000, n, dtype=np.int32) for _ in range(2))
    return tuple(rng.standard_normal(n, dtype=np.float32) for _ in range(2))


def reference(problem: Problem, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    if problem.get("fault") == "reference":
        raise RuntimeError("cannot be computed")
    if problem.get("fault") == "not_finite":
        return x / np.float32(0)
    if problem.get("fault") == "slow":
        time.sleep(0.15)
    # Denormals vanish if a kernel has left flush-to-zero on in this process.
    if np.float32(1e-40) * np.float32(0.5) == 0:
        raise RuntimeError("denormals are flushed to zero")
    return 2 * x + z


def flops(problem: Problem) -> float:
    return 2.0 * int(problem["n"])


def bytes_moved(problem: Problem) -> float:
    return 12.0 * int(problem["n"])
