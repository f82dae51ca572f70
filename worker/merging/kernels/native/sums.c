// Weighted sums over the experts, entry by entry, and their inner products.
#include "kernels.h"

void sum_chunk(const float *rows, int64_t count, int64_t stride, int64_t width,
               const float *weights, float *restrict result) {
    for (int64_t j = 0; j < width; j++) result[j] = weights[0] * rows[j];
    for (int64_t i = 1; i < count; i++) {
        const float *row = rows + i * stride;
        float weight = weights[i];
        for (int64_t j = 0; j < width; j++) result[j] += weight * row[j];
    }
}

// Write Σ wᵢxᵢ into `result`.
EXPORT void weighted_sum(const float *tensors, int64_t count, int64_t width, const float *weights,
                         float *result) {
    for (int64_t start = 0; start < width; start += CHUNK)
        sum_chunk(tensors + start, count, width, least(CHUNK, width - start), weights,
                  result + start);
}

// Add the inner products of a few rows (`left`) and a few columns (`right`): up to 4 by 4 sums are kept
// in registers. On the diagonal the columns are the rows, and only k ≥ i is added.
//
// The products of float32 are exact in float64, so that it does not matter whether the processor
// rounds them before it adds.
static inline __attribute__((always_inline)) void add_tile(
    const float *left, const float *right, int64_t stride, int64_t width, int rows, int columns,
    bool diagonal, double *gram, int64_t count) {
    CONTRACTED
    doubles lanes[4][4] = {0};
    int64_t even = width - width % LANES;
    for (int64_t j = 0; j < even; j += LANES) {
        doubles a[4], b[4];
        for (int i = 0; i < rows; i++)
            a[i] = __builtin_convertvector(*(const floats *)(left + i * stride + j), doubles);
        for (int k = 0; k < columns; k++)
            b[k] = diagonal ? a[k]
                            : __builtin_convertvector(*(const floats *)(right + k * stride + j),
                                                      doubles);
        for (int i = 0; i < rows; i++)
            for (int k = diagonal ? i : 0; k < columns; k++) lanes[i][k] += a[i] * b[k];
    }
    for (int i = 0; i < rows; i++) {
        for (int k = diagonal ? i : 0; k < columns; k++) {
            double total = sum_of(lanes[i][k]);
            for (int64_t j = even; j < width; j++)
                total += (double)left[i * stride + j] * right[k * stride + j];
            gram[i * count + k] += total;
        }
    }
}

// Add a tile of at most 4 by 4; each size is a loop of its own to the compiler.
static void add_rows(const float *left, const float *right, int64_t stride, int64_t width,
                     int64_t rows, int64_t columns, double *gram, int64_t count) {
    if (left == right) {
        switch (rows) {
            case 1: add_tile(left, left, stride, width, 1, 1, true, gram, count); return;
            case 2: add_tile(left, left, stride, width, 2, 2, true, gram, count); return;
            case 3: add_tile(left, left, stride, width, 3, 3, true, gram, count); return;
            default: add_tile(left, left, stride, width, 4, 4, true, gram, count); return;
        }
    }
    for (int64_t i = 0; i < rows; i++) {
        const float *row = left + i * stride;
        double *into = gram + i * count;
        if (columns == 4)
            add_tile(row, right, stride, width, 1, 4, false, into, count);
        else
            for (int64_t k = 0; k < columns; k++)
                add_tile(row, right + k * stride, stride, width, 1, 1, false, into + k, count);
    }
}

void gram_of(const float *rows, int64_t count, int64_t stride, int64_t width, double *gram) {
    for (int64_t start = 0; start < width; start += CHUNK) {
        int64_t chunk = least(CHUNK, width - start);
        for (int64_t i = 0; i < count; i += 4)
            for (int64_t k = i; k < count; k += 4)
                add_rows(rows + i * stride + start, rows + k * stride + start, stride, chunk,
                         least(4, count - i), least(4, count - k), gram + i * count + k, count);
    }
}

EXPORT void add_inner_products(const float *tensors, int64_t count, int64_t width, double *gram) {
    gram_of(tensors, count, width, width, gram);
}
