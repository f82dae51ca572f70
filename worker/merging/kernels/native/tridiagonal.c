// Eigenvectors of a symmetric tridiagonal matrix of which the eigenvalues are known.
#include <stdlib.h>

#include "kernels.h"

typedef int64_t indices __attribute__((vector_size(8 * LANES), aligned(8)));

// Lanes of `yes` where the mask is set, of `no` elsewhere.
static inline doubles chosen(indices mask, doubles yes, doubles no) {
    return (doubles)((mask & (indices)yes) | (~mask & (indices)no));
}

static inline doubles size_of(doubles x) {
    return (doubles)((indices)x & (indices){0x7FFFFFFFFFFFFFFF, 0x7FFFFFFFFFFFFFFF,
                                            0x7FFFFFFFFFFFFFFF, 0x7FFFFFFFFFFFFFFF,
                                            0x7FFFFFFFFFFFFFFF, 0x7FFFFFFFFFFFFFFF,
                                            0x7FFFFFFFFFFFFFFF, 0x7FFFFFFFFFFFFFFF});
}

// A pivot too small to divide by is as good as `smallest`.
static inline doubles safe(doubles pivot, double smallest) {
    doubles bound = {0};
    bound += smallest;
    return chosen(size_of(pivot) < bound, -bound, pivot);
}

// An entry that no float64 can tell from 0 beside a 1: on the way to smaller ones, which are slow.
static inline doubles flushed(doubles entry) {
    doubles zero = {0}, bound = {0};
    bound += 1e-150;
    return chosen(size_of(entry) < bound, zero, entry);
}

// Write the eigenvectors of LANES eigenvalues, one a row of `vectors`, `stride` apart.
//
// Of T − λ the factors from the top, L·D₊·Lᵀ, and from the bottom, U·D₋·Uᵀ, meet where the twisted
// pivot γ = D₊ + D₋ − (T − λ) is smallest: there the vector is 1, and follows from both factors.
static void twisted(const double *diagonal, const double *beside, int64_t n, doubles values,
                    double smallest, doubles *down, doubles *up, double *vectors, int64_t stride,
                    int64_t rows) {
    for (int64_t i = 0; i < n; i++) {
        doubles pivot = diagonal[i] - values;
        if (i) pivot -= beside[i - 1] * beside[i - 1] / down[i - 1];
        down[i] = safe(pivot, smallest);
    }
    doubles best = {0};
    indices twist = {0};
    for (int64_t i = n - 1; i >= 0; i--) {
        doubles shifted = diagonal[i] - values, pivot = shifted;
        if (i < n - 1) pivot -= beside[i] * beside[i] / up[i + 1];
        up[i] = safe(pivot, smallest);
        doubles gamma = size_of(down[i] + up[i] - shifted);
        indices better = i == n - 1 ? (indices)(gamma == gamma) : (indices)(gamma < best);
        best = chosen(better, gamma, best);
        indices here = {0};
        twist = (better & (here + i)) | (~better & twist);
    }
    // The factors' places are used up one after the other: the vector goes where `up` was.
    doubles one = {0}, zero = {0}, entry = {0}, squares = {0};
    one += 1.0;
    for (int64_t i = n - 1; i >= 0; i--) {
        indices here = {0};
        here += i;
        doubles above = i < n - 1 ? flushed(-(beside[i] / down[i]) * entry) : zero;
        entry = chosen(here == twist, one, chosen(here < twist, above, zero));
        down[i] = entry;
    }
    entry = zero;
    for (int64_t i = 0; i < n; i++) {
        indices here = {0};
        here += i;
        doubles below = i ? flushed(-(beside[i - 1] / up[i]) * entry) : zero;
        entry = chosen(here > twist, below, down[i]);
        down[i] = entry;
        squares += entry * entry;
    }
    for (int64_t l = 0; l < rows; l++) {
        double scale = 1.0 / __builtin_sqrt(squares[l]);
        for (int64_t i = 0; i < n; i++) vectors[l * stride + i] = down[i][l] * scale;
    }
}

// Write the eigenvectors of `count` eigenvalues into rows of `vectors`, `stride` apart; return 0, or
// 1 if there is no memory. They are orthogonal as far as the eigenvalues are apart.
EXPORT int32_t tridiagonal_vectors(const double *diagonal, const double *beside, int64_t n,
                                   const double *values, int64_t count, double smallest,
                                   double *vectors, int64_t stride) {
    doubles *down = aligned_alloc(64, 2 * n * sizeof *down);
    if (!down) return 1;
    for (int64_t first = 0; first < count; first += LANES) {
        doubles some;
        for (int l = 0; l < LANES; l++) some[l] = values[least(first + l, count - 1)];
        twisted(diagonal, beside, n, some, smallest, down, down + n, vectors + first * stride,
                stride, least(LANES, count - first));
    }
    free(down);
    return 0;
}

// Return the largest inner product of two of `count` rows whose values, descending, are at most
// `reach` apart, or 0.
EXPORT double largest_overlap(const double *vectors, int64_t n, int64_t count, int64_t stride,
                              const double *values, double reach) {
    double largest = 0;
    for (int64_t i = 0; i < count; i++) {
        const double *one = vectors + i * stride;
        for (int64_t j = i + 1; j < count && values[i] - values[j] <= reach; j++) {
            const double *other = vectors + j * stride;
            doubles sums[4] = {0};
            int64_t k = 0;
            for (; k + 4 * LANES <= n; k += 4 * LANES)
                for (int s = 0; s < 4; s++)
                    sums[s] += *(const doubles *)(one + k + s * LANES) *
                               *(const doubles *)(other + k + s * LANES);
            double sum = sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
            for (; k < n; k++) sum += one[k] * other[k];
            // Of NaN nothing is larger, nor smaller.
            if (!(__builtin_fabs(sum) <= largest)) largest = __builtin_fabs(sum);
        }
    }
    return largest;
}
