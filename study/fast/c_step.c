/*
Training of the study's small models in C: a GPT with one layer, one head, no biases and no dropout,
and AdamW. The mathematics is that of model.py and autograd, arranged so that almost nothing is
computed twice and everything fits in the cache:

  - In a one-layer model, the output at position t depends only on tokens 0 to t, the context. The
    distinct windows of a batch, sorted, form a tree of contexts. Each context is computed once and
    weighted by how often it occurs.
  - Before attention, a position depends only on its index and its token. So the residual, query, key
    and value come from a table over (position, token).
  - Projecting a weighted mean equals averaging projected values. So the attention's output projection
    is folded into the values of the table.
  - The gain of a layer norm scales the input of the next matrix. So it is folded into that matrix.
  - After attention, contexts are independent. L of them are computed side by side: a row is one
    feature of L contexts, and every loop runs over full vectors.

Every sum has a fixed order, whatever the compiler and the vector width. Sums over features and contexts
add one term after the other, and the lanes of a vector belong to different sums. Attention's sums over
keys go by halving (reduce). Fused multiply-adds are explicit (fma_), never left to the compiler. So the
same weights and batches give the same bytes on every machine with IEEE arithmetic, provided that the
compiler neither contracts nor reorders; c_step.py has the flags.

The gradient is computed times SCALE, as in mixed precision. Without it, most gradients of the logits of a
model that has memorized are denormal numbers (below 2^-126), and an Intel processor needs a hundred cycles
for a product with one. A power of two does not change how normal numbers round; sums_of_denormals has the
exception.

c_step.py defines T (block_size), V (vocab_size), C (n_embd), H (hidden width of the MLP) and real:
float for training, double to compare with autograd.
*/
#include <math.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
enum { VECTOR_BYTES = 64, REGISTERS = 32 };
#elif defined(__AVX__) && defined(__FMA__)
enum { VECTOR_BYTES = 32, REGISTERS = 16 };
#elif defined(__aarch64__)
enum { VECTOR_BYTES = 16, REGISTERS = 32 };
#else
enum { VECTOR_BYTES = 16, REGISTERS = 16 };
#endif

typedef __typeof__(__builtin_choose_expr(sizeof(real) == 4, 0, 0ll)) integer; // as wide as real
typedef real vec __attribute__((vector_size(VECTOR_BYTES)));
typedef integer mask __attribute__((vector_size(VECTOR_BYTES))); // each lane all ones or all zeros
enum {
    W = VECTOR_BYTES / sizeof(real), // lanes per vector
    L = 64,                          // contexts side by side
    J = L / W,                       // vectors per row
    P = T * V,                       // table entries: (position, token)
    C4 = (C + 3) / 4 * 4,            // C, H and T rounded up to multiples of 4
    H4 = (H + 3) / 4 * 4,
    T4 = (T + 3) / 4 * 4,
    CV = (C4 + W - 1) / W,           // vectors that hold C4, H4 and T4 numbers; the padding stays 0
    HV = (H4 + W - 1) / W,
    TV = (T4 + W - 1) / W,
};
#ifndef SCALE
#define SCALE ((real)(sizeof(real) == 4 ? 0x1p64 : 1))
#endif
typedef union { vec v[J]; real x[L]; } row;            // one feature of L contexts
typedef union { vec v[CV]; real x[CV * W]; } features; // all features of one context
typedef union { vec v[HV]; real x[HV * W]; } hidden;
typedef union { vec v[TV]; real x[TV * W]; } keys;     // one number per position

// Parameters, or their gradients. Same order as PARAMETERS in c_step.py.
typedef struct {
    real wte[V][C], wpe[T][C], attn[3 * C][C], proj[C][C], fc[H][C], mlp_proj[C][H];
    real ln_1[C], ln_2[C], ln_f[C];
} Params;
enum { SIZE = sizeof(Params) / sizeof(real), DECAYED = SIZE - 3 * C };

#define EACH(i, n) for (int i = 0; i < (n); i++)
// A short loop to unroll, so that small arrays live in registers. clang does it without being told.
#if defined(__clang__)
#define UNROLL EACH
#else
#define UNROLL(i, n) _Pragma("GCC unroll 16") EACH(i, n)
#endif
#define INLINE static inline __attribute__((always_inline)) // makes size arguments constants


// Numbers

INLINE vec splat(real x) { return x - (vec){0}; } // x in every lane

// Keeps x in a register; otherwise gcc loads it again for each use.
INLINE vec loaded(vec x) {
#if defined(__AVX__)
    __asm__("" : "+v"(x));
#endif
    return x;
}

// fma_ is a * b + c, rounded once. Plain C has neither it nor sqrt for vectors.
#if defined(__AVX512F__)
#define FLOAT(name, ...) (vec) _mm512_##name##_ps(__VA_ARGS__)
#define DOUBLE(name, ...) (vec) _mm512_##name##_pd(__VA_ARGS__)
typedef __m512 floats;
typedef __m512d doubles;
#elif defined(__AVX__) && defined(__FMA__)
#define FLOAT(name, ...) (vec) _mm256_##name##_ps(__VA_ARGS__)
#define DOUBLE(name, ...) (vec) _mm256_##name##_pd(__VA_ARGS__)
typedef __m256 floats;
typedef __m256d doubles;
#endif
INLINE vec fma_(vec a, vec b, vec c) {
#if defined(FLOAT)
    return sizeof(real) == 4 ? FLOAT(fmadd, (floats)a, (floats)b, (floats)c)
                             : DOUBLE(fmadd, (doubles)a, (doubles)b, (doubles)c);
#elif defined(__aarch64__)
    return sizeof(real) == 4 ? (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b)
                             : (vec)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else // one lane at a time: slow, but the same bytes
    EACH(l, W) c[l] = sizeof(real) == 4 ? __builtin_fmaf(a[l], b[l], c[l]) : __builtin_fma(a[l], b[l], c[l]);
    return c;
#endif
}
INLINE vec sqrt_(vec x) {
#if defined(FLOAT)
    return sizeof(real) == 4 ? FLOAT(sqrt, (floats)x) : DOUBLE(sqrt, (doubles)x);
#elif defined(__aarch64__)
    return sizeof(real) == 4 ? (vec)vsqrtq_f32((float32x4_t)x) : (vec)vsqrtq_f64((float64x2_t)x);
#else
    EACH(l, W) x[l] = sizeof(real) == 4 ? __builtin_sqrtf(x[l]) : __builtin_sqrt(x[l]);
    return x;
#endif
}

// condition ? a : b in each lane.
#define SELECT(condition, a, b) \
    ((__typeof__(a))(((condition) & (__typeof__(condition))(a)) | \
                     (~(condition) & (__typeof__(condition))(b))))

INLINE int any(mask m) { // whether a bit is set in some lane
    integer set = 0;
    EACH(l, W) set |= m[l];
    return set != 0;
}

// exp(x) for x <= 0, within 2 ulp. Below -87, where exp(x) < 2e-38, the result is 0.
INLINE vec exp_(vec x) {
    if (sizeof(real) == 8) {
        EACH(l, W) x[l] = exp(x[l]);
        return x;
    }
    // x = n ln 2 + r with |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds x / ln 2 to the integer n and leaves n
    // in the low bits.
    typedef unsigned bits __attribute__((vector_size(VECTOR_BYTES)));
    vec shifted = fma_(x, splat((real)1.44269504), splat((real)12582912)), n = shifted - (real)12582912;
    vec r = fma_(n, splat((real)-0.693359375), x);
    r = fma_(n, splat((real)2.12194440e-4), r);
    vec p = splat((real)1.9875691500e-4); // coefficients from Cephes, expf
    p = fma_(p, r, splat((real)1.3981999507e-3));
    p = fma_(p, r, splat((real)8.3334519073e-3));
    p = fma_(p, r, splat((real)4.1665795894e-2));
    p = fma_(p, r, splat((real)1.6666665459e-1));
    p = fma_(p, r, splat((real)5.0000001201e-1));
    p = fma_(p * r, r, r) + 1;
    bits power = ((bits)shifted << 23) + (127 << 23); // 2^n; the shift drops all but the low bits
    return (vec)((bits)(p * (vec)power) & (bits)(x > (real)-87));
}

// Exact GELU and its derivative.
INLINE void gelu(vec x, vec *y, vec *slope) {
    vec density = exp_(x * x * (real)-0.5), below; // below: the normal CDF at -|x|
    if (sizeof(real) == 8) {
        EACH(l, W) below[l] = erfc(fabs(x[l]) * 0.70710678118654752) / 2;
    } else { // Abramowitz and Stegun 7.1.26: erf within 1.5e-7, with rounding within 6e-7
        vec t = 1 / fma_(SELECT(x < 0, -x, x), splat((real)0.23164189), splat(1));
        below = fma_(t, splat((real)1.061405429), splat((real)-1.453152027));
        below = fma_(t, below, splat((real)1.421413741));
        below = fma_(t, below, splat((real)-0.284496736));
        below = fma_(t, below, splat((real)0.254829592));
        below = below * t * density * (real)0.5;
    }
    vec phi = SELECT(x < 0, below, 1 - below);
    *y = x * phi;
    *slope = fma_(x * density, splat((real)0.39894228040143268), phi);
}


// Four rows at a time

typedef real quad __attribute__((vector_size(4 * sizeof(real))));
#if defined(__clang__) // picks lanes i, j, k, l of a and b taken together
#define LANES(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef integer four __attribute__((vector_size(sizeof(quad))));
#define LANES(a, b, i, j, k, l) __builtin_shuffle(a, b, (four){i, j, k, l})
#endif

INLINE void transpose_quads(quad q[4]) {
    quad a = LANES(q[0], q[1], 0, 4, 1, 5), b = LANES(q[2], q[3], 0, 4, 1, 5);
    quad c = LANES(q[0], q[1], 2, 6, 3, 7), d = LANES(q[2], q[3], 2, 6, 3, 7);
    q[0] = LANES(a, b, 0, 1, 4, 5);
    q[1] = LANES(a, b, 2, 3, 6, 7);
    q[2] = LANES(c, d, 0, 1, 4, 5);
    q[3] = LANES(c, d, 2, 3, 6, 7);
}

// Transposes four rows a, b, c, d (n,) into out (n, 4) with `stride` numbers per row. n is a multiple of 4.
INLINE void transpose4(int n, const real *a, const real *b, const real *c, const real *d, real *out,
                       int stride) {
    for (int i = 0; i < n; i += 4) {
        quad q[4] = {*(const quad *)(a + i), *(const quad *)(b + i), *(const quad *)(c + i),
                     *(const quad *)(d + i)};
        transpose_quads(q);
        UNROLL(j, 4) *(quad *)(out + (i + j) * stride) = q[j];
    }
}
// x (L, n) with `stride` numbers per row -> y (n, L), and back.
INLINE void to_rows(int n, const real *x, int stride, row *y) {
    for (int l = 0; l < L; l += 4) {
        const real *at = x + l * stride;
        transpose4(n, at, at + stride, at + 2 * stride, at + 3 * stride, &y[0].x[l], L);
    }
}
INLINE void from_rows(int n, const row *y, real *x, int stride) {
    for (int c = 0; c < n; c += 4) transpose4(L, y[c].x, y[c + 1].x, y[c + 2].x, y[c + 3].x, x + c, stride);
}

// Sum or maximum over each of R <= 4 rows of keys (T4,), by halving. Lane i is the result of row i.
INLINE quad reduce(int R, const keys *k, int maximum) {
#define JOIN(a, b) (maximum ? (quad)SELECT((a) > (b), a, b) : (a) + (b))
    enum { N = T4 / 4, POWER = N > 32 ? 64 : N > 16 ? 32 : N > 8 ? 16 : N > 4 ? 8 : 4 }; // power of 2 >= N
    quad part[4] = {0};
    UNROLL(i, R) {
        quad q[N];
        UNROLL(j, N) q[j] = *(const quad *)(k[i].x + 4 * j);
        UNROLL(step, 6) {
            int half = POWER >> (step + 1);
            UNROLL(j, half) if (j + half < N) q[j] = JOIN(q[j], q[j + half]);
        }
        part[i] = q[0];
    }
    transpose_quads(part);
    quad a = JOIN(part[0], part[2]), b = JOIN(part[1], part[3]);
    return JOIN(a, b);
}


// Matrix products

// y = w x (+ base) for R rows of w. w (M, K), x (K, L), y and base (M, L).
INLINE void matmul_rows(int R, int K, const real *w, const row *x, row *y, const row *base) {
    enum { S = REGISTERS == 32 && J >= 4 ? 4 : 2 };
    for (int j = 0; j < J; j += S) {
        vec acc[4][S];
        UNROLL(i, R) UNROLL(s, S) acc[i][s] = base ? base[i].v[j + s] : splat(0);
        EACH(k, K) {
            vec xk[S];
            UNROLL(s, S) xk[s] = loaded(x[k].v[j + s]);
            UNROLL(i, R) {
                vec wik = splat(w[i * K + k]);
                UNROLL(s, S) acc[i][s] = fma_(wik, xk[s], acc[i][s]);
            }
        }
        UNROLL(i, R) UNROLL(s, S) y[i].v[j + s] = acc[i][s];
    }
}
INLINE void matmul(int M, int K, const real *w, const row *x, row *y, const row *base) {
    int i = 0;
    for (; i + 4 <= M; i += 4) matmul_rows(4, K, w + i * K, x, y + i, base ? base + i : 0);
    if (M % 4) matmul_rows(M % 4, K, w + i * K, x, y + i, base ? base + i : 0);
}

// y = w x for the denormal numbers at the start of each column of x, and sets them to 0 in x. y is then the
// base of a matmul of the rest. w (M, K); x (K, L) and y (M, L), times SCALE. These numbers decide how the
// next product is rounded: at a tie, by the sign of their sum. So they are summed as without SCALE, in
// multiples of 2^-149.
static void sums_of_denormals(int M, int K, const real *w, row *x, row *y) {
    vec least = splat(SCALE * (real)0x1p-126), grid = least * (real)1.5; // adding it rounds to multiples
    memset(y, 0, M * sizeof *y);
    if (SCALE == 1) return;
    mask start[J]; // the columns that had no normal number yet
    EACH(j, J) start[j] = ~(mask){0};
    EACH(k, K) {
        mask denormal[J], some = {0};
        UNROLL(j, J) {
            start[j] &= (x[k].v[j] < least) & (x[k].v[j] > -least);
            denormal[j] = (mask)x[k].v[j] & start[j];
            some |= denormal[j];
        }
        if (!any(some)) continue;
        EACH(j, J) x[k].v[j] -= (vec)denormal[j];
        EACH(i, M) EACH(j, J) {
            y[i].v[j] = fma_(splat(w[i * K + k]), (vec)denormal[j], y[i].v[j] + grid) - grid;
        }
    }
}

// dw += a b for R rows of dw. a (M, L), b (L, N), dw (M, N), with N counted in vectors.
INLINE void outer_rows(int R, int S, int N, const row *a, const vec *b, vec *dw) {
    vec acc[8][4];
    UNROLL(i, R) UNROLL(s, S) acc[i][s] = dw[i * N + s];
    EACH(l, L) {
        vec bl[4];
        UNROLL(s, S) bl[s] = loaded(b[l * N + s]);
        UNROLL(i, R) {
            vec ail = splat(a[i].x[l]);
            UNROLL(s, S) acc[i][s] = fma_(ail, bl[s], acc[i][s]);
        }
    }
    UNROLL(i, R) UNROLL(s, S) dw[i * N + s] = acc[i][s];
}
INLINE void outer_columns(int S, int M, int N, const row *a, const vec *b, vec *dw) {
    int most = REGISTERS / 2 / S, R = most > 8 ? 8 : most, i = 0; // half the registers hold sums
    for (; i + R <= M; i += R) outer_rows(R, S, N, a + i, b, dw + i * N);
    if (M % R) outer_rows(M % R, S, N, a + i, b, dw + i * N);
}
INLINE void outer(int M, int N, const row *a, const vec *b, vec *dw) {
    enum { MOST = REGISTERS == 32 ? 4 : 2 };
    int S = N < MOST ? N : MOST, s = 0;
    for (; s + S <= N; s += S) outer_columns(S, M, N, a, b + s, dw + s);
    if (N % S) outer_columns(N % S, M, N, a, b + s, dw + s);
}

// w (M, K) -> out (K, M)
INLINE void transpose(int M, int K, const real *w, real *out) {
    EACH(i, M) EACH(k, K) out[k * M + i] = w[i * K + k];
}


// Layer norm without gain

// y = (x - mean) * rstd for each context, with rstd = 1 / sqrt(variance + 1e-5). x, y (C, L), rstd (L,).
INLINE void norm_forward(const row *x, row *y, row *rstd) {
    EACH(j, J) {
        vec mean = splat(0), variance = splat(0);
        EACH(c, C) mean += x[c].v[j];
        mean *= (real)1 / C;
        EACH(c, C) {
            vec d = x[c].v[j] - mean;
            variance = fma_(d, d, variance);
        }
        vec r = 1 / sqrt_(variance * ((real)1 / C) + (real)1e-5);
        EACH(c, C) y[c].v[j] = (x[c].v[j] - mean) * r;
        rstd->v[j] = r;
    }
}
// dx += gradient with respect to x. y and rstd are norm_forward's.
INLINE void norm_backward(const row *dy, const row *y, const row *rstd, row *dx) {
    EACH(j, J) {
        vec mean = splat(0), along = splat(0);
        EACH(c, C) {
            mean += dy[c].v[j];
            along = fma_(dy[c].v[j], y[c].v[j], along);
        }
        mean *= (real)1 / C;
        along *= (real)-1 / C;
        EACH(c, C) dx[c].v[j] = fma_(fma_(y[c].v[j], along, dy[c].v[j] - mean), rstd->v[j], dx[c].v[j]);
    }
}


// The tree of contexts of a batch

typedef struct {
    int n_windows, n_contexts, n_targets;
    int positions; // batch size * T: a context that occurs n times has weight n / positions
    struct {
        const int *tokens;
        int from, context; // positions `from` to T - 1 are new contexts, numbered from `context` on
    } *window;
    struct {
        int count, target; // how often it occurs; its first target, or -1
    } *context;
    struct {
        int token, count, next; // a token that follows the context; how often; the next target, or -1
    } *target;
    keys *weights; // attention weights of each context
    features *x;   // residual of each context after attention, later the gradient with respect to it
} Tree;

// Iterates over the targets of context n.
#define EACH_TARGET(i, n) for (int i = tree->context[n].target; i >= 0; i = tree->target[i].next)

// Builds the tree of a batch. distinct (n, T + 1): all distinct windows of the data, sorted. prefix (n,): how
// many leading tokens each shares with the previous one. count (n,): how often each is in the batch.
static void grow_tree(Tree *tree, int n, const int *distinct, const int *prefix, const int *count) {
    int last[T], last_target[T], same = 0; // the previous window's contexts and their targets
    tree->n_windows = tree->n_contexts = tree->n_targets = 0;
    EACH(i, n) {
        // Tokens shared with the last window in the batch: the minimum over the windows in between.
        same = prefix[i] < same ? prefix[i] : same;
        if (!count[i]) continue;
        const int *tokens = distinct + i * (T + 1);
        for (int t = same; t < T; t++) {
            last[t] = tree->n_contexts++;
            tree->context[last[t]].count = 0;
            tree->context[last[t]].target = -1;
        }
        // The last shared context gets another target.
        for (int t = same ? same - 1 : 0; t < T; t++) {
            int target = last_target[t] = tree->n_targets++;
            tree->target[target].token = tokens[t + 1];
            tree->target[target].count = 0;
            tree->target[target].next = tree->context[last[t]].target;
            tree->context[last[t]].target = target;
        }
        EACH(t, T) {
            tree->context[last[t]].count += count[i];
            tree->target[last_target[t]].count += count[i];
        }
        if (same < T) {
            tree->window[tree->n_windows].tokens = tokens;
            tree->window[tree->n_windows].from = same;
            tree->window[tree->n_windows++].context = last[same];
        }
        same = T + 1; // this window shares all T + 1 tokens with itself
    }
}


// Layers

// Residual, query, key and projected value of a (position, token) before attention.
typedef struct { features x, q, k, v; } Entry;
static Entry table[P + L], dtable[P + L];
enum { ENTRY = sizeof(Entry) / sizeof(real) };

// Weights with the gains, the scale of the scores and the output projection folded in.
static struct {
    real qkv[3 * C][C], qkv_t[3 * C][C]; // three (C, C) matrices; qkv_t has each of them transposed
    real value[C][C];                    // output projection @ value matrix, without the gain
    real fc[H][C], fc_t[C][H], mlp_proj_t[H][C], head[V][C], head_t[C][V];
} folded;
static struct { features qkv[3 * C], fc[H], head[V]; hidden mlp_proj[C]; } dfolded;

static void fold(const Params *p) {
    real scale = 1 / (real)__builtin_sqrt(C);
    EACH(i, C) EACH(c, C) {
        real s = 0;
        EACH(k, C) s += p->proj[i][k] * p->attn[2 * C + k][c];
        folded.value[i][c] = s;
        folded.qkv[i][c] = p->attn[i][c] * p->ln_1[c] * scale;
        folded.qkv[C + i][c] = p->attn[C + i][c] * p->ln_1[c];
        folded.qkv[2 * C + i][c] = s * p->ln_1[c];
    }
    EACH(i, H) EACH(c, C) folded.fc[i][c] = p->fc[i][c] * p->ln_2[c];
    EACH(v, V) EACH(c, C) folded.head[v][c] = p->wte[v][c] * p->ln_f[c];
    EACH(i, 3) transpose(C, C, folded.qkv[i * C], folded.qkv_t[i * C]);
    transpose(H, C, folded.fc[0], folded.fc_t[0]);
    transpose(C, H, p->mlp_proj[0], folded.mlp_proj_t[0]);
    transpose(V, C, folded.head[0], folded.head_t[0]);
}
// Gradients of the parameters from those of the folded weights. Adds to g->wte.
static void unfold(const Params *p, Params *g) {
    static real dvalue[C][C];
    real scale = 1 / (real)__builtin_sqrt(C);
    EACH(i, C) EACH(c, C) {
        real q = dfolded.qkv[i].x[c] * scale, k = dfolded.qkv[C + i].x[c], v = dfolded.qkv[2 * C + i].x[c];
        g->attn[i][c] = q * p->ln_1[c];
        g->attn[C + i][c] = k * p->ln_1[c];
        g->ln_1[c] += q * p->attn[i][c] + k * p->attn[C + i][c] + v * folded.value[i][c];
        dvalue[i][c] = v * p->ln_1[c];
    }
    EACH(i, C) EACH(j, C) EACH(c, C) {
        g->attn[2 * C + j][c] += p->proj[i][j] * dvalue[i][c];
        g->proj[i][j] += dvalue[i][c] * p->attn[2 * C + j][c];
    }
    EACH(i, H) EACH(c, C) {
        g->fc[i][c] = dfolded.fc[i].x[c] * p->ln_2[c];
        g->ln_2[c] += dfolded.fc[i].x[c] * p->fc[i][c];
        g->mlp_proj[c][i] = dfolded.mlp_proj[c].x[i];
    }
    EACH(v, V) EACH(c, C) {
        g->wte[v][c] += dfolded.head[v].x[c] * p->ln_f[c];
        g->ln_f[c] += dfolded.head[v].x[c] * p->wte[v][c];
    }
}

// Table entries r0 to r0 + L - 1: embeddings, layer norm, queries, keys and values.
static void table_forward(const Params *p, int r0) {
    static row x[C4], y[C4], qkv[3][C4], rstd;
    // Entries past P are padding; they start over at position 0.
    EACH(l, L) EACH(c, C) table[r0 + l].x.x[c] = p->wte[(r0 + l) % V][c] + p->wpe[(r0 + l) / V % T][c];
    to_rows(C4, table[r0].x.x, ENTRY, x);
    norm_forward(x, y, &rstd);
    EACH(i, 3) matmul(C, C, folded.qkv[i * C], y, qkv[i], 0);
    from_rows(C4, qkv[0], table[r0].q.x, ENTRY);
    from_rows(C4, qkv[1], table[r0].k.x, ENTRY);
    from_rows(C4, qkv[2], table[r0].v.x, ENTRY);
}
static void table_backward(Params *g, int r0) {
    static row x[C4], y[C4], dx[C4], dy[C4], dqkv[3][C4], rstd;
    static features y_t[L]; // y (L, C), later dx
    to_rows(C4, table[r0].x.x, ENTRY, x);
    to_rows(C4, dtable[r0].x.x, ENTRY, dx);
    to_rows(C4, dtable[r0].q.x, ENTRY, dqkv[0]);
    to_rows(C4, dtable[r0].k.x, ENTRY, dqkv[1]);
    to_rows(C4, dtable[r0].v.x, ENTRY, dqkv[2]);
    norm_forward(x, y, &rstd);
    from_rows(C4, y, y_t[0].x, CV * W);
    EACH(i, 3) {
        outer(C, CV, dqkv[i], y_t[0].v, dfolded.qkv[i * C].v);
        matmul(C, C, folded.qkv_t[i * C], dqkv[i], dy, i ? dy : 0);
    }
    norm_backward(dy, y, &rstd, dx);
    from_rows(C4, dx, y_t[0].x, CV * W);
    for (int r = r0; r < r0 + L && r < P; r++) EACH(c, C) {
        g->wte[r % V][c] += y_t[r - r0].x[c];
        g->wpe[r / V][c] += y_t[r - r0].x[c];
    }
}

static mask causal[T][TV]; // causal[t] selects keys 0 to t

// Transposes the keys or values of a window into columns[feature][position]. Positions before `from` are
// shared with the previous window and already there.
#define SET_COLUMNS(columns, what, entry, from) \
    for (int k = (from) / 4 * 4; k < T; k += 4) \
        transpose4(C4, entry[k]->what.x, entry[k + 1]->what.x, entry[k + 2]->what.x, entry[k + 3]->what.x, \
                   &columns[0].x[k], TV * W)

// Attention of the contexts at positions t to t + R - 1 of a window, R <= 4: weights, and x = residual +
// weighted sum of values. entry (T,): the window's table entries. key (C, T): its keys, transposed.
INLINE void attend(int R, int t, const Entry *const *entry, const keys *key, keys *weights, features *x) {
    keys score[4];
    UNROLL(i, R) UNROLL(s, TV) score[i].v[s] = splat(0);
    EACH(c, C) UNROLL(i, R) {
        vec q = splat(entry[t + i]->q.x[c]);
        UNROLL(s, TV) score[i].v[s] = fma_(q, key[c].v[s], score[i].v[s]);
    }
    UNROLL(i, R) UNROLL(s, TV) score[i].v[s] = SELECT(causal[t + i][s], score[i].v[s], splat(-1e30));
    quad top = reduce(R, score, 1);
    UNROLL(i, R) UNROLL(s, TV) {
        score[i].v[s] = (vec)((mask)exp_(score[i].v[s] - splat(top[i])) & causal[t + i][s]);
    }
    quad share = 1 / reduce(R, score, 0);
    UNROLL(i, R) UNROLL(s, TV) weights[i].v[s] = score[i].v[s] * splat(share[i]);
    vec out[4][CV];
    UNROLL(i, R) UNROLL(s, CV) out[i][s] = entry[t + i]->x.v[s];
    EACH(k, t + R) {
        vec value[CV];
        UNROLL(s, CV) value[s] = loaded(entry[k]->v.v[s]);
        UNROLL(i, R) UNROLL(s, CV) out[i][s] = fma_(splat(weights[i].x[k]), value[s], out[i][s]);
    }
    UNROLL(i, R) UNROLL(s, CV) x[i].v[s] = out[i][s];
}
// Backward of attend: adds to dentry the gradient of the window's table entries. value (C, T): the window's
// values, transposed. dx: the gradient with respect to x of these contexts.
INLINE void attend_backward(int R, int t, const Entry *const *entry, Entry *const *dentry, const keys *value,
                            const keys *weights, const features *dx) {
    keys ds[4]; // gradient of the weights, then of the scores: weight * (d - sum of weight * d)
    UNROLL(i, R) UNROLL(s, TV) ds[i].v[s] = splat(0);
    EACH(c, C) UNROLL(i, R) {
        vec d = splat(dx[i].x[c]);
        UNROLL(s, TV) ds[i].v[s] = fma_(d, value[c].v[s], ds[i].v[s]);
    }
    keys product[4];
    UNROLL(i, R) UNROLL(s, TV) product[i].v[s] = ds[i].v[s] * weights[i].v[s];
    quad along = reduce(R, product, 0);
    UNROLL(i, R) UNROLL(s, TV) ds[i].v[s] = (ds[i].v[s] - splat(along[i])) * weights[i].v[s];
    vec dq[4][CV], q[4][CV], d[4][CV];
    UNROLL(i, R) UNROLL(s, CV) {
        dq[i][s] = splat(0), q[i][s] = loaded(entry[t + i]->q.v[s]), d[i][s] = loaded(dx[i].v[s]);
    }
    EACH(k, t + R) {
        vec key[CV];
        UNROLL(s, CV) key[s] = loaded(entry[k]->k.v[s]);
        UNROLL(i, R) UNROLL(s, CV) dq[i][s] = fma_(splat(ds[i].x[k]), key[s], dq[i][s]);
    }
    EACH(k, t + R) {
        UNROLL(s, CV) {
            vec dk = dentry[k]->k.v[s];
            UNROLL(i, R) dk = fma_(splat(ds[i].x[k]), q[i][s], dk);
            dentry[k]->k.v[s] = dk;
        }
    }
    EACH(k, t + R) {
        UNROLL(s, CV) {
            vec dv = dentry[k]->v.v[s];
            UNROLL(i, R) dv = fma_(splat(weights[i].x[k]), d[i][s], dv);
            dentry[k]->v.v[s] = dv;
        }
    }
    UNROLL(i, R) UNROLL(s, CV) dentry[t + i]->q.v[s] += dq[i][s], dentry[t + i]->x.v[s] += d[i][s];
}

static void attention_forward(Tree *tree) {
    static keys key[C4];
    EACH(i, tree->n_windows) {
        int from = tree->window[i].from, n = tree->window[i].context, t = from;
        const Entry *entry[T4];
        EACH(k, T4) entry[k] = k < T ? &table[k * V + tree->window[i].tokens[k]] : entry[T - 1];
        SET_COLUMNS(key, k, entry, from);
        for (; t + 4 <= T; t += 4, n += 4) attend(4, t, entry, key, tree->weights + n, tree->x + n);
        if (T - t == 3) attend(3, t, entry, key, tree->weights + n, tree->x + n);
        if (T - t == 2) attend(2, t, entry, key, tree->weights + n, tree->x + n);
        if (T - t == 1) attend(1, t, entry, key, tree->weights + n, tree->x + n);
    }
}
static void attention_backward(Tree *tree) {
    static keys value[C4];
    EACH(i, tree->n_windows) {
        int from = tree->window[i].from, n = tree->window[i].context, t = from;
        const Entry *entry[T4];
        Entry *dentry[T];
        EACH(k, T4) entry[k] = k < T ? &table[k * V + tree->window[i].tokens[k]] : entry[T - 1];
        EACH(k, T) dentry[k] = &dtable[entry[k] - table];
        SET_COLUMNS(value, v, entry, from);
        for (; t + 4 <= T; t += 4, n += 4) {
            attend_backward(4, t, entry, dentry, value, tree->weights + n, tree->x + n);
        }
        if (T - t == 3) attend_backward(3, t, entry, dentry, value, tree->weights + n, tree->x + n);
        if (T - t == 2) attend_backward(2, t, entry, dentry, value, tree->weights + n, tree->x + n);
        if (T - t == 1) attend_backward(1, t, entry, dentry, value, tree->weights + n, tree->x + n);
    }
}

// Forward from the residual after attention to the loss, and backward, for L contexts from n0 on. Replaces
// their tree->x by its gradient, times SCALE, and returns their part of the loss.
static double mlp_and_head(const Params *p, Tree *tree, int n0, int want_loss) {
    static row x[C4], y[C4], rstd;            // residual, normalized
    static row z[H], gz[H4], slope[H], dz[H]; // hidden layer, gelu(z), gelu'(z), gradient of z
    static row x2[C], f[C4], rstd_f;          // residual after the MLP, normalized
    static row o[V], top, sum;                // logits, then their gradient; maximum; sum of exp(logit - top)
    static row weight;                        // weight of each context in the loss, times SCALE
    static row dx[C4], d[C];                  // gradient of the residual; of y or f
    static features y_t[L], f_t[L];           // y, f and gz transposed: (L, C), (L, C), (L, H)
    static hidden gz_t[L];
    int n = tree->n_contexts - n0 < L ? tree->n_contexts - n0 : L;
    double loss = 0;
    EACH(l, L) weight.x[l] = l < n ? tree->context[n0 + l].count / (real)tree->positions * SCALE : 0;
    to_rows(C4, tree->x[n0].x, CV * W, x);

    norm_forward(x, y, &rstd);
    matmul(H, C, folded.fc[0], y, z, 0);
    EACH(i, H) EACH(j, J) gelu(z[i].v[j], &gz[i].v[j], &slope[i].v[j]);
    matmul(C, H, p->mlp_proj[0], gz, x2, x);
    norm_forward(x2, f, &rstd_f);
    matmul(V, C, folded.head[0], f, o, 0);
    if (want_loss) {
        EACH(l, n) EACH_TARGET(i, n0 + l) {
            loss -= (double)tree->target[i].count * o[tree->target[i].token].x[l];
        }
    }
    EACH(j, J) { // o = weight * softmax(o)
        vec largest = o[0].v[j], total = splat(0);
        EACH(v, V) largest = SELECT(o[v].v[j] > largest, o[v].v[j], largest);
        EACH(v, V) {
            o[v].v[j] = exp_(o[v].v[j] - largest);
            total += o[v].v[j];
        }
        top.v[j] = largest, sum.v[j] = total;
        total = weight.v[j] / total;
        EACH(v, V) o[v].v[j] *= total;
    }
    // Cross-entropy as log-sum-exp minus logit: the log of a probability would be -inf if that underflows.
    if (want_loss) EACH(l, n) loss += tree->context[n0 + l].count * (top.x[l] + log(sum.x[l]));
    // o -= share of the targets: now the gradient of the logits.
    EACH(l, n) EACH_TARGET(i, n0 + l) {
        o[tree->target[i].token].x[l] -= tree->target[i].count / (real)tree->positions * SCALE;
    }

    from_rows(C4, y, y_t[0].x, CV * W);
    from_rows(C4, f, f_t[0].x, CV * W);
    from_rows(H4, gz, gz_t[0].x, HV * W);
    outer(V, CV, o, f_t[0].v, dfolded.head[0].v);
    sums_of_denormals(C, V, folded.head_t[0], o, d);
    matmul(C, V, folded.head_t[0], o, d, d);
    memset(dx, 0, sizeof dx);
    norm_backward(d, f, &rstd_f, dx);
    outer(C, HV, dx, gz_t[0].v, dfolded.mlp_proj[0].v);
    matmul(H, C, folded.mlp_proj_t[0], dx, dz, 0);
    EACH(i, H) EACH(j, J) dz[i].v[j] *= slope[i].v[j];
    outer(H, CV, dz, y_t[0].v, dfolded.fc[0].v);
    sums_of_denormals(C, H, folded.fc_t[0], dz, d);
    matmul(C, H, folded.fc_t[0], dz, d, d);
    norm_backward(d, y, &rstd, dx);
    from_rows(C4, dx, tree->x[n0].x, CV * W);
    return loss / tree->positions;
}


// One update

// Writes the gradient of a batch's mean cross-entropy to g. Returns the loss if want_loss.
static double gradient(const Params *p, Params *g, Tree *tree, int want_loss) {
    double loss = 0;
    memset(g, 0, sizeof *g);
    memset(dtable, 0, sizeof dtable);
    memset(&dfolded, 0, sizeof dfolded);
    fold(p);
    for (int r = 0; r < P; r += L) table_forward(p, r);
    attention_forward(tree);
    for (int n = 0; n < tree->n_contexts; n += L) loss += mlp_and_head(p, tree, n, want_loss);
    attention_backward(tree);
    for (int r = 0; r < P; r += L) table_backward(g, r);
    unfold(p, g);
    EACH(i, SIZE) ((real *)g)[i] *= 1 / SCALE;
    return loss;
}

static double power(double x, int n) { // unlike pow(), the same to the last bit in every C library
    double result = 1;
    for (; n; n /= 2, x *= x) result *= n % 2 ? x : 1;
    return result;
}

// Clips g like torch.nn.utils.clip_grad_norm_ and updates like torch.optim.AdamW. step counts from 1.
static void adamw(real *p, const real *g, real *m, real *v, int step, double lr, double beta1, double beta2,
                  double weight_decay, double grad_clip) {
    double squares = 0;
    EACH(i, SIZE) squares += (double)g[i] * g[i];
    double clip = grad_clip > 0 ? grad_clip / (__builtin_sqrt(squares) + 1e-6) : 1;
    real scale = clip < 1 ? clip : 1, keep = 1 - lr * weight_decay, new1 = 1 - beta1, new2 = 1 - beta2;
    real rate = lr / (1 - power(beta1, step)), root = __builtin_sqrt(1 - power(beta2, step));
    EACH(i, DECAYED) p[i] *= keep;
    EACH(i, SIZE) {
        real d = g[i] * scale;
        m[i] += (d - m[i]) * new1;
        v[i] += (d * d - v[i]) * new2;
        real rms = sizeof(real) == 4 ? __builtin_sqrtf(v[i]) : __builtin_sqrt(v[i]);
        p[i] -= rate * m[i] / (rms / root + (real)1e-8);
    }
}

// The vector unit this was compiled for, or "" without fused multiply-add, where PyTorch is faster.
const char *vector_unit(void) {
#if defined(__AVX512F__)
    return "AVX-512";
#elif defined(__AVX__) && defined(__FMA__)
    return "AVX2";
#elif defined(__aarch64__)
    return "NEON";
#else
    return "";
#endif
}

/*
Runs `updates` updates. Returns the loss of the last batch (nats per token), or -1 if out of memory.

p, m, v: parameters and AdamW's moments, updated in place. g: receives the last gradient, before clipping.
indices (updates, batch): rows of `distinct`. lr (updates,): learning rates. done: updates made before.
n, distinct, prefix: the windows of the data, see grow_tree.
*/
double train(real *p, real *g, real *m, real *v, int updates, int batch, const int *indices, const double *lr,
             int done, int n, const int *distinct, const int *prefix, double beta1, double beta2,
             double weight_decay, double grad_clip) {
    int windows = batch < n ? batch : n, contexts = (windows * T + L - 1) / L * L;
    Tree tree = {.positions = batch * T};
    int *count = malloc(n * sizeof *count);
    tree.window = malloc(windows * sizeof *tree.window);
    tree.context = malloc(contexts * sizeof *tree.context);
    tree.target = malloc(contexts * sizeof *tree.target);
    tree.weights = aligned_alloc(64, contexts * sizeof *tree.weights);
    tree.x = aligned_alloc(64, contexts * sizeof *tree.x);
    EACH(t, T) EACH(k, TV * W) causal[t][k / W][k % W] = k <= t ? -1 : 0;
    double loss = -1;
    if (count && tree.window && tree.context && tree.target && tree.weights && tree.x) {
        memset(tree.x, 0, contexts * sizeof *tree.x);
        EACH(u, updates) {
            memset(count, 0, n * sizeof *count);
            EACH(i, batch) count[indices[(size_t)u * batch + i]]++;
            grow_tree(&tree, n, distinct, prefix, count);
            loss = gradient((Params *)p, (Params *)g, &tree, u == updates - 1);
            adamw(p, g, m, v, done + u + 1, lr[u], beta1, beta2, weight_decay, grad_clip);
        }
    }
    free(count), free(tree.window), free(tree.context), free(tree.target), free(tree.weights), free(tree.x);
    return loss;
}
