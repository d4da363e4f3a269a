/*
Training updates of the study's small models, written out by hand: a GPT with one layer, one head, no
biases and no dropout, trained by AdamW. The same mathematics as model.py and autograd, arranged so
that almost nothing is computed twice and everything stays in the cache:

  - With one layer, what the model says after tokens 0 to t of a window depends on these tokens alone.
    The distinct windows of a batch, sorted, form a tree of such contexts. Each context is computed
    once and weighs as often as it came.
  - Before the attention a position knows only itself and its token, so residual, query, key and value
    come from a table over (position, token).
  - A weighted mean of projected values is the projected weighted mean, so the projection of the
    attention's output is part of the values in the table.
  - The gain of a layer norm multiplies what the next matrix reads, so it is folded into that matrix.
  - After the attention, contexts do not meet: L of them are taken side by side, one feature of all of
    them being a row, so that every loop is over full vectors.

Every sum has one order, whatever the compiler and the width of its vectors: sums over features, keys
and contexts run one term after the other, the lanes of a vector belong to different sums, and whether
a product is rounded before it is added is written out (fma_), not left to the compiler. So the same
weights and batches give the same bytes on every machine with IEEE arithmetic, as long as the compiler
does not contract or reorder (c_step.py says with which flags).

Constants, given by c_step.py: T block_size, V vocab_size, C n_embd, H the hidden width of the MLP,
and real, which is float (or double, to compare with autograd).
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
typedef integer mask __attribute__((vector_size(VECTOR_BYTES))); // all bits of a lane, or none
enum {
    W = VECTOR_BYTES / sizeof(real), // lanes of a vector
    L = 64,                          // contexts side by side
    J = L / W,                       // vectors of a row of L
    P = T * V,                       // entries of the table: (position, token)
    C4 = (C + 3) / 4 * 4,            // C, H and T as multiples of 4
    H4 = (H + 3) / 4 * 4,
    T4 = (T + 3) / 4 * 4,
    CV = (C4 + W - 1) / W,           // vectors that hold as many numbers; what is over stays 0
    HV = (H4 + W - 1) / W,
    TV = (T4 + W - 1) / W,
};
typedef union { vec v[J]; real x[L]; } row;            // one feature of L contexts
typedef union { vec v[CV]; real x[CV * W]; } features; // all features of one context
typedef union { vec v[HV]; real x[HV * W]; } hidden;
typedef union { vec v[TV]; real x[TV * W]; } keys;     // one number for each position

// The model's parameters, and their gradients, in the order of c_step.py.
typedef struct {
    real wte[V][C], wpe[T][C], attn[3 * C][C], proj[C][C], fc[H][C], mlp_proj[C][H], ln_1[C], ln_2[C], ln_f[C];
} Params;
enum { SIZE = sizeof(Params) / sizeof(real), DECAYED = SIZE - 3 * C };

#define EACH(i, n) for (int i = 0; i < (n); i++)
// A few steps that the compiler writes out, so that small arrays become registers; clang does it by itself.
#if defined(__clang__)
#define UNROLL EACH
#else
#define UNROLL(i, n) _Pragma("GCC unroll 16") EACH(i, n)
#endif
#define INLINE static inline __attribute__((always_inline)) // sizes that are arguments become constants


// Numbers.

INLINE vec splat(real x) { return x - (vec){0}; } // x in every lane

// Keeps x in a register for its several uses; gcc would load it for each of them.
INLINE vec loaded(vec x) {
#if defined(__AVX__)
    __asm__("" : "+v"(x));
#endif
    return x;
}

// a b + c, rounded once, and the square root: what vectors of plain C lack.
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
    return sizeof(real) == 4 ? FLOAT(fmadd, (floats)a, (floats)b, (floats)c) : DOUBLE(fmadd, (doubles)a, (doubles)b, (doubles)c);
#elif defined(__aarch64__)
    return sizeof(real) == 4 ? (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b)
                             : (vec)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else // one lane after the other: slow, and the same bytes
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

// Lane by lane, a where the condition holds and b elsewhere.
#define SELECT(condition, a, b) \
    ((__typeof__(a))(((condition) & (__typeof__(condition))(a)) | (~(condition) & (__typeof__(condition))(b))))

// exp(x) for x <= 0, within 2 units in the last place; 0 below -87, where it would be less than 2e-38.
INLINE vec exp_(vec x) {
    if (sizeof(real) == 8) {
        EACH(l, W) x[l] = exp(x[l]);
        return x;
    }
    // x = n ln 2 + r with |r| <= ln 2 / 2: 1.5 * 2^23 rounds x / ln 2 to n and leaves n in the low bits.
    typedef unsigned bits __attribute__((vector_size(VECTOR_BYTES)));
    vec shifted = fma_(x, splat((real)1.44269504), splat((real)12582912)), n = shifted - (real)12582912;
    vec r = fma_(n, splat((real)-0.693359375), x);
    r = fma_(n, splat((real)2.12194440e-4), r);
    vec p = splat((real)1.9875691500e-4); // Cephes, expf
    p = fma_(p, r, splat((real)1.3981999507e-3));
    p = fma_(p, r, splat((real)8.3334519073e-3));
    p = fma_(p, r, splat((real)4.1665795894e-2));
    p = fma_(p, r, splat((real)1.6666665459e-1));
    p = fma_(p, r, splat((real)5.0000001201e-1));
    p = fma_(p * r, r, r) + 1;
    bits power = ((bits)shifted << 23) + (127 << 23); // 2^n: what is above the low bits is shifted out
    return (vec)((bits)(p * (vec)power) & (bits)(x > (real)-87));
}

// GELU (exact) and its slope.
INLINE void gelu(vec x, vec *y, vec *slope) {
    vec density = exp_(x * x * (real)-0.5), below; // below: the normal distribution function of -|x|
    if (sizeof(real) == 8) {
        EACH(l, W) below[l] = erfc(fabs(x[l]) * 0.70710678118654752) / 2;
    } else { // Abramowitz and Stegun 7.1.26: erf within 1.5e-7, and 6e-7 as rounded here
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


// Four rows at once.

typedef real quad __attribute__((vector_size(4 * sizeof(real))));
#if defined(__clang__) // lanes i to l of a and b side by side
#define LANES(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define LANES(a, b, i, j, k, l) __builtin_shuffle(a, b, (integer __attribute__((vector_size(sizeof(quad))))){i, j, k, l})
#endif

INLINE void transpose_quads(quad q[4]) {
    quad a = LANES(q[0], q[1], 0, 4, 1, 5), b = LANES(q[2], q[3], 0, 4, 1, 5);
    quad c = LANES(q[0], q[1], 2, 6, 3, 7), d = LANES(q[2], q[3], 2, 6, 3, 7);
    q[0] = LANES(a, b, 0, 1, 4, 5);
    q[1] = LANES(a, b, 2, 3, 6, 7);
    q[2] = LANES(c, d, 0, 1, 4, 5);
    q[3] = LANES(c, d, 2, 3, 6, 7);
}

// Four rows a to d of n numbers, a multiple of 4, to the columns of out, whose rows are `stride` numbers apart.
INLINE void transpose4(int n, const real *a, const real *b, const real *c, const real *d, real *out, int stride) {
    for (int i = 0; i < n; i += 4) {
        quad q[4] = {*(const quad *)(a + i), *(const quad *)(b + i), *(const quad *)(c + i), *(const quad *)(d + i)};
        transpose_quads(q);
        UNROLL(j, 4) *(quad *)(out + (i + j) * stride) = q[j];
    }
}
// L contexts with n features each, `stride` numbers apart, to n rows of one feature; and back.
INLINE void to_rows(int n, const real *x, int stride, row *y) {
    for (int l = 0; l < L; l += 4) {
        const real *at = x + l * stride;
        transpose4(n, at, at + stride, at + 2 * stride, at + 3 * stride, &y[0].x[l], L);
    }
}
INLINE void from_rows(int n, const row *y, real *x, int stride) {
    for (int c = 0; c < n; c += 4) transpose4(L, y[c].x, y[c + 1].x, y[c + 2].x, y[c + 3].x, x + c, stride);
}

// The sums, or the maxima, of R <= 4 rows of keys: halves are joined until one number of each is left.
INLINE quad reduce(int R, const keys *k, int maximum) {
#define JOIN(a, b) (maximum ? (quad)SELECT((a) > (b), a, b) : (a) + (b))
    enum { N = T4 / 4, POWER = N > 32 ? 64 : N > 16 ? 32 : N > 8 ? 16 : N > 4 ? 8 : 4 }; // POWER of 2 >= N
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


// Matrix products.

// y = w x (+ base): R of the rows of w (M, K), x (K, L), y (M, L).
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

// dw += a b: R of the rows of dw (M, N vectors), a (M, L), b (L, N vectors).
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
    int most = REGISTERS / 2 / S, R = most > 8 ? 8 : most, i = 0; // half of the registers hold sums
    for (; i + R <= M; i += R) outer_rows(R, S, N, a + i, b, dw + i * N);
    if (M % R) outer_rows(M % R, S, N, a + i, b, dw + i * N);
}
INLINE void outer(int M, int N, const row *a, const vec *b, vec *dw) {
    enum { MOST = REGISTERS == 32 ? 4 : 2 };
    int S = N < MOST ? N : MOST, s = 0;
    for (; s + S <= N; s += S) outer_columns(S, M, N, a, b + s, dw + s);
    if (N % S) outer_columns(N % S, M, N, a, b + s, dw + s);
}

INLINE void transpose(int M, int K, const real *w, real *out) { EACH(i, M) EACH(k, K) out[k * M + i] = w[i * K + k]; }


// Layer norm, without its gain.

// y = (x - mean) / sqrt(variance + 1e-5) of each context; rstd: that factor.
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
// dx += the gradient through norm_forward, of which y and rstd are.
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


// The tree of a batch.

typedef struct {
    int n_windows, n_contexts, n_targets, positions; // positions: batch * T, what the weights are shares of
    struct { const int *tokens; int from, context; } *window; // has new contexts from position `from` on: the first of them
    struct { int count, target; } *context;                   // how often it came; the first of its targets, or -1
    struct { int token, count, next; } *target;               // a token that followed a context, how often; the next one, or -1
    keys *weights;                                            // attention weights of each context
    features *x;                                              // its residual after the attention, later the gradient
} Tree;

// The targets of a context, by their numbers in the tree.
#define EACH_TARGET(i, n) for (int i = tree->context[n].target; i >= 0; i = tree->target[i].next)

// distinct (n, T + 1): the data's windows, sorted; prefix (n): with how many tokens each begins like the one before;
// count (n): how often the batch has it.
static void grow_tree(Tree *tree, int n, const int *distinct, const int *prefix, const int *count) {
    int last[T], last_target[T], same = 0; // of the window before: its contexts and their targets
    tree->n_windows = tree->n_contexts = tree->n_targets = 0;
    EACH(i, n) {
        same = prefix[i] < same ? prefix[i] : same; // with the last window that the batch has, over those it has not
        if (!count[i]) continue;
        const int *tokens = distinct + i * (T + 1);
        for (int t = same; t < T; t++) {
            last[t] = tree->n_contexts++;
            tree->context[last[t]].count = 0;
            tree->context[last[t]].target = -1;
        }
        for (int t = same ? same - 1 : 0; t < T; t++) { // the last context in common gets another target
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
        same = T + 1; // with itself
    }
}


// The layers.

// What a (position, token) is before the attention: residual, query, key and projected value; and the gradient by it.
typedef struct { features x, q, k, v; } Entry;
static Entry table[P + L], dtable[P + L];
enum { ENTRY = sizeof(Entry) / sizeof(real) };

static struct { // the matrices that contexts meet: gains, the scores' scale and the projection are in them
    real qkv[3 * C][C], qkv_t[3 * C][C]; // queries, keys and values, a square each; the squares transposed
    real value[C][C];                    // the projection times the values' matrix
    real fc[H][C], fc_t[C][H], mlp_proj_t[H][C], head[V][C], head_t[C][V];
} folded;
static struct { features qkv[3 * C], fc[H], head[V]; hidden mlp_proj[C]; } dfolded; // the gradient by them

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
// The parameters' gradients from those of the folded matrices; adds to g->wte.
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

// Embeddings, first layer norm, queries, keys and values of L (position, token) from r0 on.
static void table_forward(const Params *p, int r0) {
    static row x[C4], y[C4], qkv[3][C4], rstd;
    // Entries from P on are padding, of the first positions again.
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
    static features y_t[L]; // y, later dx, with the features of each entry together
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

static mask causal[T][TV]; // causal[t]: all bits set for the keys up to t

// Keys or values of the window at hand as columns[feature][position]; those of positions before `from` are there already.
#define SET_COLUMNS(columns, what, entry, from) \
    for (int k = (from) / 4 * 4; k < T; k += 4) \
        transpose4(C4, entry[k]->what.x, entry[k + 1]->what.x, entry[k + 2]->what.x, entry[k + 3]->what.x, \
                   &columns[0].x[k], TV * W)

// The contexts of a window at positions t to t + R - 1, R <= 4 (entry: of all its positions; key: their keys as
// columns): attention weights, and x = residual + the weighted sum of the values.
INLINE void attend(int R, int t, const Entry *const *entry, const keys *key, keys *weights, features *x) {
    keys score[4];
    UNROLL(i, R) UNROLL(s, TV) score[i].v[s] = splat(0);
    EACH(c, C) UNROLL(i, R) {
        vec q = splat(entry[t + i]->q.x[c]);
        UNROLL(s, TV) score[i].v[s] = fma_(q, key[c].v[s], score[i].v[s]);
    }
    UNROLL(i, R) UNROLL(s, TV) score[i].v[s] = SELECT(causal[t + i][s], score[i].v[s], splat(-1e30));
    quad top = reduce(R, score, 1);
    UNROLL(i, R) UNROLL(s, TV) score[i].v[s] = (vec)((mask)exp_(score[i].v[s] - splat(top[i])) & causal[t + i][s]);
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
// The same back: dx, the gradient by x of these contexts, goes on to the table's (value: the values as columns).
INLINE void attend_backward(int R, int t, const Entry *const *entry, Entry *const *dentry, const keys *value,
                            const keys *weights, const features *dx) {
    keys ds[4]; // by the weights, and from there by the scores: (d - sum of d * weight) * weight
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
    UNROLL(i, R) UNROLL(s, CV) dq[i][s] = splat(0), q[i][s] = loaded(entry[t + i]->q.v[s]), d[i][s] = loaded(dx[i].v[s]);
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
        for (; t + 4 <= T; t += 4, n += 4) attend_backward(4, t, entry, dentry, value, tree->weights + n, tree->x + n);
        if (T - t == 3) attend_backward(3, t, entry, dentry, value, tree->weights + n, tree->x + n);
        if (T - t == 2) attend_backward(2, t, entry, dentry, value, tree->weights + n, tree->x + n);
        if (T - t == 1) attend_backward(1, t, entry, dentry, value, tree->weights + n, tree->x + n);
    }
}

// From the residual after the attention to the loss of L contexts from n0 on, and back to that residual.
static double mlp_and_head(const Params *p, Tree *tree, int n0, int want_loss) {
    static row x[C4], y[C4], rstd;               // residual, normalized
    static row z[H], gz[H4], slope[H], dz[H];    // the MLP's hidden layer, gelu(z) and its slope, the gradient by z
    static row x2[C], f[C4], rstd_f;             // residual after the MLP, normalized
    static row o[V], top, sum;                   // logits, then the gradient by them; their largest, sum of exp(logit - top)
    static row weight;                           // how much each context counts
    static row dx[C4], d[C];                     // gradients by the residual and by y or f
    static features y_t[L], f_t[L];              // y, f and gz with the numbers of each context together
    static hidden gz_t[L];
    int n = tree->n_contexts - n0 < L ? tree->n_contexts - n0 : L;
    double loss = 0;
    EACH(l, L) weight.x[l] = l < n ? tree->context[n0 + l].count / (real)tree->positions : 0;
    to_rows(C4, tree->x[n0].x, CV * W, x);

    norm_forward(x, y, &rstd);
    matmul(H, C, folded.fc[0], y, z, 0);
    EACH(i, H) EACH(j, J) gelu(z[i].v[j], &gz[i].v[j], &slope[i].v[j]);
    matmul(C, H, p->mlp_proj[0], gz, x2, x);
    norm_forward(x2, f, &rstd_f);
    matmul(V, C, folded.head[0], f, o, 0);
    if (want_loss) EACH(l, n) EACH_TARGET(i, n0 + l) loss -= (double)tree->target[i].count * o[tree->target[i].token].x[l];
    EACH(j, J) { // o becomes weight * probability; less the targets' shares, below, it is the gradient by the logits
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
    // Not the logarithm of a probability, which may be too small for a real: the loss is finite where the logits are.
    if (want_loss) EACH(l, n) loss += tree->context[n0 + l].count * (top.x[l] + log(sum.x[l]));
    EACH(l, n) EACH_TARGET(i, n0 + l) o[tree->target[i].token].x[l] -= tree->target[i].count / (real)tree->positions;

    from_rows(C4, y, y_t[0].x, CV * W);
    from_rows(C4, f, f_t[0].x, CV * W);
    from_rows(H4, gz, gz_t[0].x, HV * W);
    outer(V, CV, o, f_t[0].v, dfolded.head[0].v);
    matmul(C, V, folded.head_t[0], o, d, 0);
    memset(dx, 0, sizeof dx);
    norm_backward(d, f, &rstd_f, dx);
    outer(C, HV, dx, gz_t[0].v, dfolded.mlp_proj[0].v);
    matmul(H, C, folded.mlp_proj_t[0], dx, dz, 0);
    EACH(i, H) EACH(j, J) dz[i].v[j] *= slope[i].v[j];
    outer(H, CV, dz, y_t[0].v, dfolded.fc[0].v);
    matmul(C, H, folded.fc_t[0], dz, d, 0);
    norm_backward(d, y, &rstd, dx);
    from_rows(C4, dx, tree->x[n0].x, CV * W);
    return loss / tree->positions;
}


// One update.

// The gradient g of the mean cross-entropy over a batch; returns that loss if it is wanted.
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
    return loss;
}

static double power(double x, int n) { // not pow(), whose last bit is the library's own
    double result = 1;
    for (; n; n /= 2, x *= x) result *= n % 2 ? x : 1;
    return result;
}

// Clips g by its norm, as torch.nn.utils.clip_grad_norm_, and steps as torch.optim.AdamW; step counts from 1.
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

// The vectors this was compiled for; "" without a fused multiply-add, where PyTorch is faster.
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
Makes `updates` updates; returns the loss of the last one's batch (nats per token), or -1 without the memory.

p, m, v: parameters and AdamW's moments, changed in place; g: the last gradient. done: updates before these.
indices (updates, batch): rows of `distinct` (n, T + 1), the data's windows, sorted; prefix (n,): see grow_tree.
*/
double train(real *p, real *g, real *m, real *v, int updates, int batch, const int *indices, const double *lr, int done,
             int n, const int *distinct, const int *prefix, double beta1, double beta2, double weight_decay, double grad_clip) {
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
