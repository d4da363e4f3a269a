// Trains on a made-up text for a few updates and prints a digest of the weights: the same one everywhere.
#include "c_step.c"
#include <stdint.h>
#include <stdio.h>

enum { TOKENS = 400, WINDOWS = 60, BATCH = 80, UPDATES = 6 };

static uint32_t draw(uint32_t below) {
    static uint32_t state = 1;
    return (state = state * 1664525u + 1013904223u) / 65536 * below / 65536;
}

static int compare(const void *a, const void *b) {
    for (const int *x = a, *y = b; x < (const int *)a + T + 1; x++, y++)
        if (*x != *y) return *x < *y ? -1 : 1;
    return 0;
}

int main(void) {
    static real p[SIZE], g[SIZE], m[SIZE], v[SIZE];
    static int text[TOKENS], windows[WINDOWS][T + 1], prefix[WINDOWS], indices[UPDATES][BATCH];
    static double lr[UPDATES];
    // A text that often repeats what stood seven characters before, so that windows share their beginnings.
    EACH(i, TOKENS) text[i] = i < 7 || !draw(4) ? (int)draw(V) : text[i - 7];
    EACH(i, WINDOWS) memcpy(windows[i], text + 3 * i, sizeof windows[i]);
    qsort(windows, WINDOWS, sizeof windows[0], compare);
    for (int i = 1; i < WINDOWS; i++)
        while (prefix[i] <= T && windows[i][prefix[i]] == windows[i - 1][prefix[i]]) prefix[i]++;
    EACH(i, SIZE) p[i] = i < DECAYED ? ((int)draw(2001) - 1000) / (real)4096 : 1;
    EACH(u, UPDATES) EACH(i, BATCH) indices[u][i] = draw(WINDOWS);
    EACH(u, UPDATES) lr[u] = 0.01 / (u + 1);
    train(p, g, m, v, UPDATES, BATCH, indices[0], lr, 0, WINDOWS, windows[0], prefix, 0.9, 0.99, 0.1, 1.0);
    uint64_t digest = 14695981039346656037u; // FNV-1a
    for (size_t i = 0; i < sizeof p; i++) digest = (digest ^ ((unsigned char *)p)[i]) * 1099511628211u;
    printf("%016llx\n", (unsigned long long)digest);
}
