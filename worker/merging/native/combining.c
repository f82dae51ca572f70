// Linear combinations of rows in memory.
#include "kernels.h"

// Write Σ wᵢxᵢ of a chunk of rows.
static void sum_chunk(const float *rows, int64_t count, int64_t width, int64_t stride,
                      const float *weights, float *restrict result) {
    for (int64_t j = 0; j < width; j++) result[j] = weights[0] * rows[j];
    for (int64_t i = 1; i < count; i++) {
        const float *row = rows + i * stride;
        float weight = weights[i];
        for (int64_t j = 0; j < width; j++) result[j] += weight * row[j];
    }
}

EXPORT void weighted_sum(const float *rows, int64_t count, int64_t width, const float *weights,
                         float *result) {
    for (int64_t j = 0; j < width; j += CHUNK)
        sum_chunk(rows + j, count, min(CHUNK, width - j), width, weights, result + j);
}

// Copy the first row's entries that have the same bits in all rows.
static void copy_equal(const float *rows, int64_t count, int64_t width, int64_t stride,
                       float *restrict result) {
    int32_t differing[CHUNK] = {0};
    for (int64_t i = 1; i < count; i++) {
        const float *row = rows + i * stride;
        for (int64_t j = 0; j < width; j++) differing[j] |= bits_of(row[j]) ^ bits_of(rows[j]);
    }
    for (int64_t j = 0; j < width; j++) result[j] = differing[j] ? result[j] : rows[j];
}

static bool combine_chunk(const float *rows, int64_t count, int64_t width, int64_t stride,
                          const Combination *combination, float *results, int64_t result_stride) {
    const float *coefficients = combination->coefficients;
    if (!combination->subtracted) {
        sum_chunk(rows, count, width, stride, coefficients, results);
        if (combination->copy_equal) copy_equal(rows, count, width, stride, results);
        return inspect_rows(results, 1, width, width) & FINITE;
    }
    float total[CHUNK], *sum = combination->apart ? results + result_stride : total;
    sum_chunk(rows + stride, count - 1, width, stride, coefficients, sum);
    if (!combination->apart)
        return add_scaled(rows, combination->scales, combination->outputs, sum, width, results,
                          result_stride);
    memcpy(results, rows, width * sizeof *results);
    return inspect_rows(sum, 1, width, width) & FINITE;
}

EXPORT bool combine_rows(const float *rows, int64_t count, int64_t width, int64_t stride,
                         const Combination *combination, float *results, int64_t result_stride) {
    bool finite = true;
    for (int64_t j = 0; j < width; j += CHUNK)
        finite &= combine_chunk(rows + j, count, min(CHUNK, width - j), stride, combination,
                                results + j, result_stride);
    return finite;
}
