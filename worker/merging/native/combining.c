// Linear combinations of rows in memory.
#include "kernels.h"

// Copy the first row's entries that have the same bits in all rows.
static void copy_equal(const float *rows, int64_t count, int64_t stride, int64_t width,
                       float *restrict result) {
    int32_t differing[CHUNK] = {0};
    for (int64_t i = 1; i < count; i++) {
        const float *row = rows + i * stride;
        for (int64_t j = 0; j < width; j++) differing[j] |= bits_of(row[j]) ^ bits_of(rows[j]);
    }
    for (int64_t j = 0; j < width; j++) result[j] = differing[j] ? result[j] : rows[j];
}

static bool combine_chunk(const float *rows, int64_t count, int64_t stride, int64_t width,
                          const Combination *combination, float *results, int64_t result_stride) {
    const float *coefficients = combination->coefficients;
    if (!combination->subtracted) {
        sum_chunk(rows, count, stride, width, coefficients, results);
        if (combination->copy_equal) copy_equal(rows, count, stride, width, results);
        return inspect_rows(results, 1, width, width) & FINITE;
    }
    if (combination->apart) {
        float *sum = results + result_stride;
        memcpy(results, rows, width * sizeof *results);
        sum_chunk(rows + stride, count - 1, stride, width, coefficients, sum);
        return inspect_rows(sum, 1, width, width) & FINITE;
    }
    float sum[CHUNK];
    sum_chunk(rows + stride, count - 1, stride, width, coefficients, sum);
    return add_scaled_rows(rows, combination->scales, combination->outputs, sum, width,
                           result_stride, results);
}

bool combine_block(const float *rows, int64_t count, int64_t stride, int64_t width,
                   const Combination *combination, float *results, int64_t result_stride) {
    bool finite = true;
    for (int64_t from = 0; from < width; from += CHUNK)
        finite &= combine_chunk(rows + from, count, stride, min(CHUNK, width - from), combination,
                                results + from, result_stride);
    return finite;
}

EXPORT int32_t combine_rows(const float *rows, int64_t count, int64_t stride, int64_t width,
                            const Combination *combination, float *results) {
    return combine_block(rows, count, stride, width, combination, results, width);
}
