// Linear combinations of inputs, whose rows are in memory.
#include "kernels.h"

static bool combine_chunk(const float *rows, int64_t count, int64_t stride, int64_t width,
                          const Combination *what, float *results, int64_t apart) {
    float total[CHUNK];
    int64_t first = what->subtracted != 0;
    if (what->apart) {
        memcpy(results, rows, width * sizeof *results);
        sum_chunk(rows + stride, count - 1, stride, width, what->coefficients, results + apart);
        return inspect_rows(results + apart, 1, apart, width) & FINITE;
    }
    sum_chunk(rows + first * stride, count - first, stride, width, what->coefficients, total);
    if (first)
        return add_scaled_rows(rows, what->scales, what->outputs, total, width, apart, results);
    memcpy(results, total, width * sizeof *results);
    if (what->copy_equal) {
        int32_t differing[CHUNK] = {0};
        for (int64_t i = 1; i < count; i++) {
            const float *row = rows + i * stride;
            for (int64_t j = 0; j < width; j++) differing[j] |= bits_of(row[j]) ^ bits_of(rows[j]);
        }
        for (int64_t j = 0; j < width; j++) results[j] = differing[j] ? results[j] : rows[j];
    }
    return inspect_rows(results, 1, apart, width) & FINITE;
}

bool combine_block(const float *rows, int64_t count, int64_t stride, int64_t width,
                   const Combination *what, float *results, int64_t apart) {
    bool finite = true;
    for (int64_t from = 0; from < width; from += CHUNK)
        finite &= combine_chunk(rows + from, count, stride, least(CHUNK, width - from), what,
                                results + from, apart);
    return finite;
}

// Write what rows in memory combine to into `results`; say whether all is finite.
EXPORT int32_t combine_rows(const float *rows, int64_t count, int64_t stride, int64_t width,
                            const Combination *what, float *results) {
    return combine_block(rows, count, stride, width, what, results, width);
}
