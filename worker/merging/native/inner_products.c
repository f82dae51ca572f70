// Inner products of the experts, and their energies. Products of float32 are exact in float64: fused
// with the addition or not, the sums have the same bits.
#include "kernels.h"

FUSE_PRODUCTS

// Add the inner products of a few rows (`left`) and a few columns (`right`), up to 4 by 4, whose sums
// are kept in registers. On the diagonal the columns are the rows, and only k ≥ i is added.
static inline __attribute__((always_inline)) void add_tile(
    const float *left, const float *right, int64_t stride, int64_t width, int rows, int columns,
    bool diagonal, double *gram, int64_t count) {
    doubles lanes[4][4][PARTS] = {0};
    int64_t even = width - width % LANES;
    for (int64_t j = 0; j < even; j += LANES) {
        UNROLLED
        for (int p = 0; p < PARTS; p++) {
            doubles a[4], b[4];
            UNROLLED
            for (int i = 0; i < rows; i++) a[i] = widened(left + i * stride + j + p * PART);
            UNROLLED
            for (int k = 0; k < columns; k++)
                b[k] = diagonal ? a[k] : widened(right + k * stride + j + p * PART);
            UNROLLED
            for (int i = 0; i < rows; i++) {
                UNROLLED
                for (int k = diagonal ? i : 0; k < columns; k++) lanes[i][k][p] += a[i] * b[k];
            }
        }
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

// Add a tile of at most 4 by 4; the compiler unrolls the loop of each size.
static void add_rows(const float *left, const float *right, int64_t stride, int64_t width,
                     int64_t rows, int64_t columns, double *gram, int64_t count) {
    if (left == right) {
        switch (rows) {
            case 1: return add_tile(left, left, stride, width, 1, 1, true, gram, count);
            case 2: return add_tile(left, left, stride, width, 2, 2, true, gram, count);
            case 3: return add_tile(left, left, stride, width, 3, 3, true, gram, count);
            default: return add_tile(left, left, stride, width, 4, 4, true, gram, count);
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

EXPORT void add_inner_products(const float *rows, int64_t count, int64_t width, int64_t stride,
                               double *gram) {
    for (int64_t start = 0; start < width; start += CHUNK) {
        int64_t chunk = min(CHUNK, width - start);
        for (int64_t i = 0; i < count; i += 4)
            for (int64_t k = i; k < count; k += 4)
                add_rows(rows + i * stride + start, rows + k * stride + start, stride, chunk,
                         min(4, count - i), min(4, count - k), gram + i * count + k, count);
    }
}

// Return Σ (row·selected)² of a chunk, `selected` being 0 or 1.
static double energy(const float *row, const float *selected, int64_t chunk) {
    doubles lanes[PARTS] = {0};
    int64_t even = chunk - chunk % LANES;
    for (int64_t j = 0; j < even; j += LANES) {
        UNROLLED
        for (int p = 0; p < PARTS; p++) {
            doubles kept = widened(row + j + p * PART) * widened(selected + j + p * PART);
            lanes[p] += kept * kept;
        }
    }
    double total = sum_of(lanes);
    for (int64_t j = even; j < chunk; j++) {
        double kept = (double)(row[j] * selected[j]);
        total += kept * kept;
    }
    return total;
}

EXPORT void add_energies(const float *tensors, int64_t count, int64_t width, const float *ranked,
                         float cut, double *energies) {
    float selected[CHUNK];
    for (int64_t start = 0; start < width; start += CHUNK) {
        int64_t chunk = min(CHUNK, width - start);
        for (int64_t j = 0; j < chunk; j++) selected[j] = ranked[start + j] >= cut ? 1.0f : 0.0f;
        for (int64_t i = 0; i < count; i++)
            energies[i] += energy(tensors + i * width + start, selected, chunk);
    }
}
