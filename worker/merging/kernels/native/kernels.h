// What the kernels share. All run on the calling thread. Those that work entry by entry take rows of
// float32 that lie one after the other. Nothing is reordered by the compiler: sums over experts are
// taken in the experts' order, entry by entry, and long sums in a fixed number of lanes, so that
// results depend neither on where blocks begin nor, but for `algebra.h`, on the instruction set.
#ifndef AFLUENTE_KERNELS_H
#define AFLUENTE_KERNELS_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

// Entries of one row that are worked on at a time: some rows of them stay in the first cache.
enum { CHUNK = 1024, LANES = 8 };

// Flags of what was found in a block: all entries are finite, all inputs have the same bits, and what
// was made of them is finite.
enum { FINITE = 1, EQUAL = 2, RESULT_FINITE = 4 };

// All of a float32's exponent bits are set in infinity and NaN only.
#define EXPONENT ((int32_t)0x7F800000)
#define MAGNITUDE ((int32_t)0x7FFFFFFF)

// Where products are exact, so that a processor may as well not round them before it adds.
#ifdef __clang__
#define CONTRACTED _Pragma("clang fp contract(fast)")
#else
#define CONTRACTED
#endif

typedef float floats __attribute__((vector_size(4 * LANES), aligned(4)));
typedef double doubles __attribute__((vector_size(8 * LANES), aligned(8)));

// Σ cᵢxᵢ and what it becomes.
//
// With `subtracted` the first row is the base W₀, the others are xᵢ − W₀, and there is a result
// W₀ + λ·Σ cᵢ(xᵢ − W₀) for each λ in `scales`, of which to add 0 changes nothing; with `apart` the
// results are W₀ and the sum. Else the result is the sum, or with `copy_equal` the entry itself where
// it has the same bits in all rows.
typedef struct {
    const float *coefficients;
    const float *scales;
    int64_t outputs;
    int32_t subtracted;
    int32_t apart;
    int32_t copy_equal;
} Combination;

// Write what rows `stride` apart combine to into results `apart`; say whether all is finite.
bool combine_block(const float *rows, int64_t count, int64_t stride, int64_t width,
                   const Combination *what, float *results, int64_t apart);

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

static inline int32_t bits_of(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float number_of(int32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline double sum_of(doubles lanes) {
    double total = 0;
    for (int l = 0; l < LANES; l++) total += lanes[l];
    return total;
}

// What is in rows `stride` apart: FINITE if all entries are, plus EQUAL if all rows hold the same
// bits. `subtract_rows` then has the first row subtracted from the others.
int32_t inspect_rows(const float *rows, int64_t count, int64_t stride, int64_t width);
int32_t subtract_rows(float *rows, int64_t count, int64_t stride, int64_t width);

// Write base + scale·values into a row of `results`, `stride` apart, for each scale; say if all is
// finite. To add nothing changes nothing, not even the sign of a zero.
int32_t add_scaled_rows(const float *base, const float *scales, int64_t count, const float *values,
                        int64_t width, int64_t stride, float *results);

// Write Σ wᵢxᵢ of a chunk of rows `stride` apart.
void sum_chunk(const float *rows, int64_t count, int64_t stride, int64_t width,
               const float *weights, float *result);

// Add the inner products of rows i and k, `stride` apart, to gram[i, k], k ≥ i.
void gram_of(const float *rows, int64_t count, int64_t stride, int64_t width, double *gram);

// Write `values` into `kept`, 0 for what is smaller than `key` says: kept is what has a magnitude
// key above `key`, and of the first `split` entries also what has that key.
static inline void keep(const float *restrict values, int64_t count, int32_t key, int64_t split,
                        float *restrict kept) {
    int64_t here = least(most(split, 0), count);
    int32_t inclusive = here == count ? key - 1 : key;
    for (int64_t j = 0; j < count; j++) {
        int32_t size = bits_of(values[j]) & MAGNITUDE;
        kept[j] = size > inclusive ? values[j] : 0.0f;
    }
    if (here == count) return;
    for (int64_t j = 0; j < here; j++)
        if ((bits_of(values[j]) & MAGNITUDE) == key) kept[j] = values[j];
}

#endif
