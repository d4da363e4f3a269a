// Compare exp and erf of the step in float32 with those of the C library in double. Print the largest
// error of exp in units in the last place, the largest exp below -87, and the largest error of erf.
#include "c_step.c"
#include <stdio.h>

int main(void) {
    double exp_error = 0, exp_below_87 = 0, erf_error = 0;
    for (double start = 0; start < 110; start += 1e-5 * W) {
        vec x, y, slope;
        EACH(l, W) x[l] = -(start + 1e-5 * l);
        gelu(x, &y, &slope);
        vec power = exp_(x), density = exp_(x * x * (real)-0.5);
        EACH(l, W) {
            double exact = exp(x[l]), unit = nextafterf(exact, 1) - (double)(float)exact;
            if (x[l] > -87) exp_error = fmax(exp_error, fabs(power[l] - exact) / unit);
            else exp_below_87 = fmax(exp_below_87, power[l]);
            double cdf = slope[l] - x[l] * density[l] * 0.39894228040143268;
            erf_error = fmax(erf_error, fabs(2 * cdf - 1 - erf(x[l] * 0.70710678118654752)));
        }
    }
    printf("%g %g %g\n", exp_error, exp_below_87, erf_error);
}
