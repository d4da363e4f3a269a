// Prints how far the step's exp and normal distribution function in float32 are from the C library's in double: the
// largest error of exp in units in the last place, the largest exp below -87, and the largest error of erf.
#include "c_step.c"
#include <stdio.h>

int main(void) {
    double of_exp = 0, below = 0, of_erf = 0;
    for (double start = 0; start < 110; start += 1e-5 * W) {
        vec x, y, slope;
        EACH(l, W) x[l] = -(start + 1e-5 * l);
        gelu(x, &y, &slope);
        vec power = exp_(x), density = exp_(x * x * (real)-0.5);
        EACH(l, W) {
            double exact = exp(x[l]), unit = nextafterf(exact, 1) - (double)(float)exact;
            if (x[l] > -87) of_exp = fmax(of_exp, fabs(power[l] - exact) / unit);
            else below = fmax(below, power[l]);
            double cdf = slope[l] - x[l] * density[l] * 0.39894228040143268;
            of_erf = fmax(of_erf, fabs(2 * cdf - 1 - erf(x[l] * 0.70710678118654752)));
        }
    }
    printf("%g %g %g\n", of_exp, below, of_erf);
}
