// What the kernels share. They all run on the calling thread. Entrywise kernels take rows of float32
// that lie one after the other. The compiler reorders nothing: sums over experts are taken in the
// experts' order, entry by entry, and long sums in a fixed number of lanes. So results depend neither
// on where blocks begin nor, `algebra.h` excepted, on the instruction set.
//
// What an exported kernel writes and returns is said in binding.py, which calls it.
#ifndef AFLUENTE_KERNELS_H
#define AFLUENTE_KERNELS_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

// Entries of one row that are worked on at a time: several such rows fit into the L1 cache.
enum { CHUNK = 1024 };

// Bytes of a vector register.
#if defined __AVX512F__
enum { WIDTH = 64 };
#elif defined __AVX__
enum { WIDTH = 32 };
#else
enum { WIDTH = 16 };
#endif

// Long sums are taken in LANES lanes whatever the width of a register: in PARTS registers.
enum { LANES = 8, PART = WIDTH / 8, PARTS = LANES / PART };

// What was found in a block, as in binding.py.
enum { FINITE = 1, EQUAL = 2, RESULT_FINITE = 4 };

// All of a float32's exponent bits are set in infinity and NaN only.
#define EXPONENT ((int32_t)0x7F800000)
#define MAGNITUDE ((int32_t)0x7FFFFFFF)

// For files in which a processor may fuse a multiplication and an addition.
#ifdef __clang__
#define FUSE_PRODUCTS _Pragma("clang fp contract(fast)")
#define UNROLLED _Pragma("clang loop unroll(full)")
#else
#define FUSE_PRODUCTS _Pragma("GCC optimize(\"fp-contract=fast\")")
#define UNROLLED _Pragma("GCC unroll 16")
#endif

// Vectors as wide as a register: gcc keeps wider ones in memory.
typedef double doubles __attribute__((vector_size(WIDTH), aligned(8)));
typedef int64_t integers __attribute__((vector_size(WIDTH), aligned(8)));
typedef float floats __attribute__((vector_size(WIDTH / 2), aligned(4)));

static inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

typedef union {
    float number;
    int32_t bits;
} Float;

static inline int32_t bits_of(float x) { return (Float){.number = x}.bits; }
static inline float float_of(int32_t bits) { return (Float){.bits = bits}.number; }

static inline doubles widened(const float *x) {
    return __builtin_convertvector(*(const floats *)x, doubles);
}

// The sum of LANES lanes, from the first to the last.
static inline double sum_of(const doubles *parts) {
    double total = 0;
    for (int p = 0; p < PARTS; p++)
        for (int l = 0; l < PART; l++) total += parts[p][l];
    return total;
}

// A number in each entry of a vector.
static inline doubles all(double x) { return x - (doubles){0}; }

// rows.c: `inspect_rows` returns FINITE if all entries are, plus EQUAL if all rows have the same bits.
// `subtract_rows` does too, and subtracts the first row from the others.
int32_t inspect_rows(const float *rows, int64_t count, int64_t width, int64_t stride);
int32_t subtract_rows(float *rows, int64_t count, int64_t width, int64_t stride);
bool add_scaled(const float *base, const float *scales, int64_t count, const float *values,
                int64_t width, float *results, int64_t result_stride);

// inner_products.c
void add_inner_products(const float *rows, int64_t count, int64_t width, int64_t stride,
                        double *gram);

// combining.c
typedef struct {
    const float *coefficients, *scales;
    int64_t outputs;
    bool subtracted, apart, copy_equal;
} Combination;

bool combine_rows(const float *rows, int64_t count, int64_t width, int64_t stride,
                  const Combination *combination, float *results, int64_t result_stride);

#endif
