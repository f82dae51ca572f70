// Linear combinations of inputs that come one after the other, of a piece of their entries.
#ifndef AFLUENTE_COMBINING_H
#define AFLUENTE_COMBINING_H

#include "kernels.h"

// Entries of an input that are taken at a time: what a read costs beside its bytes is little, and a
// few inputs' pieces stay in a core's share of the cache.
enum { PIECE = 16384 };

enum { RESULT_FINITE = 4 };

// Σ cᵢxᵢ and what it becomes.
//
// With `subtract` the first input is the base W₀, the coefficients are those of the others, and there
// is a result W₀ + λ·Σ cᵢ(xᵢ − W₀) for each λ in `scales`, of which to add 0 changes nothing. With
// `subtracted` the others come as xᵢ − W₀. Else the result is the sum, or with `copy_equal` the entry
// itself where it has the same bits in all inputs.
typedef struct {
    const float *coefficients;
    const float *scales;
    int64_t outputs;
    int32_t subtract;
    int32_t subtracted;
    int32_t copy_equal;
} Combination;

// A piece's sum so far: the first input, the largest exponent, and where the inputs differ.
typedef struct {
    const float *first;
    int32_t worst;
    float total[PIECE];
    int32_t differing[PIECE];
} Sum;

void begin_sum(Sum *sum, const Combination *what, const float *first, int64_t width);
void add_to_sum(Sum *sum, const Combination *what, const float *row, int64_t input, int64_t width);

// Write the results, `stride` apart; return FINITE and RESULT_FINITE, as they hold.
int64_t end_sum(const Sum *sum, const Combination *what, int64_t width, float *results,
                int64_t stride);

#endif
