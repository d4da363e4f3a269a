// Compare sums of products that begin with denormal numbers, by sums_of_denormals and matmul times SCALE,
// with those of matmul alone. The factors have few bits, so that many sums are at a tie. Print how many sums
// differ, and how many would if the denormal numbers were dropped.
#include "c_step.c"
#include <stdint.h>
#include <stdio.h>

static uint32_t draw(uint32_t below) {
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (state >> 32) * below >> 32;
}

static real few_bits(int exponent) { // of either sign, its largest bit 2^exponent
    return ldexpf((int)draw(2) * 2 - 1, exponent) * (1 + draw(1 << 13) / (real)(1 << 13));
}

int main(void) {
    static real w[C][V];
    static row plain[V], scaled[V], dropped[V], by_hardware[C], by_scale[C], without[C];
    int differ = 0, would_differ = 0;
    EACH(batch, 2000) {
        EACH(i, C) EACH(v, V) w[i][v] = few_bits(-(int)draw(14));
        EACH(l, L) {
            int first = 1 + draw(V - 1); // the first normal number
            EACH(v, V) {
                real denormal = draw(2) ? few_bits(-127 - (int)draw(14)) : 0;
                real x = v >= first ? few_bits(-20 - (int)draw(30)) : denormal;
                plain[v].x[l] = x, scaled[v].x[l] = x * SCALE, dropped[v].x[l] = v >= first ? x : 0;
            }
        }
        matmul(C, V, w[0], plain, by_hardware, 0);
        matmul(C, V, w[0], dropped, without, 0);
        sums_of_denormals(C, V, w[0], scaled, by_scale);
        matmul(C, V, w[0], scaled, by_scale, by_scale);
        EACH(i, C) EACH(l, L) {
            differ += by_scale[i].x[l] / SCALE != by_hardware[i].x[l];
            would_differ += without[i].x[l] != by_hardware[i].x[l];
        }
    }
    printf("%d %d\n", differ, would_differ);
}
