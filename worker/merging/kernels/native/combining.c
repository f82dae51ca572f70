// Linear combinations of inputs: of files' as they are read, or of rows in memory.
#include "combining.h"

static int32_t largest_exponent(const float *row, int64_t width, int32_t worst) {
    for (int64_t j = 0; j < width; j++) {
        int32_t exponent = bits_of(row[j]) & EXPONENT;
        worst = exponent > worst ? exponent : worst;
    }
    return worst;
}

void begin_sum(Sum *sum, const Combination *what, const float *first, int64_t width) {
    sum->first = first;
    sum->worst = largest_exponent(first, width, 0);
    memset(sum->differing, 0, width * sizeof *sum->differing);
    float weight = what->coefficients[0];
    if (!what->subtract)
        for (int64_t j = 0; j < width; j++) sum->total[j] = weight * first[j];
}

// Set `total` to weight·(row − base), or add that to it.
static void add_change(float *restrict total, const float *restrict row,
                       const float *restrict base, float weight, bool begins, int64_t width) {
    if (begins)
        for (int64_t j = 0; j < width; j++) total[j] = weight * (row[j] - base[j]);
    else
        for (int64_t j = 0; j < width; j++) total[j] += weight * (row[j] - base[j]);
}

static void add_row(float *restrict total, const float *restrict row, float weight, bool begins,
                    int64_t width) {
    if (begins)
        for (int64_t j = 0; j < width; j++) total[j] = weight * row[j];
    else
        for (int64_t j = 0; j < width; j++) total[j] += weight * row[j];
}

void add_to_sum(Sum *sum, const Combination *what, const float *row, int64_t input, int64_t width) {
    const float *restrict first = sum->first;
    float weight = what->coefficients[input - what->subtract];
    sum->worst = largest_exponent(row, width, sum->worst);
    if (what->subtract && !what->subtracted) {
        add_change(sum->total, row, first, weight, input == 1, width);
        return;
    }
    add_row(sum->total, row, weight, what->subtract && input == 1, width);
    if (what->copy_equal)
        for (int64_t j = 0; j < width; j++) sum->differing[j] |= bits_of(row[j]) ^ bits_of(first[j]);
}

int64_t end_sum(const Sum *sum, const Combination *what, int64_t width, float *results,
                int64_t stride) {
    int64_t seen = sum->worst != EXPONENT ? FINITE : 0;
    if (what->subtract) {
        bool finite = add_scaled_rows(sum->first, what->scales, what->outputs, sum->total, width,
                                      stride, results);
        return seen | (finite ? RESULT_FINITE : 0);
    }
    for (int64_t j = 0; j < width; j++) {
        bool equal = what->copy_equal && sum->differing[j] == 0;
        results[j] = equal ? sum->first[j] : sum->total[j];
    }
    return seen | (largest_exponent(results, width, 0) != EXPONENT ? RESULT_FINITE : 0);
}

// Write what rows in memory combine to into `results`, as `read_combined` does of files.
EXPORT int64_t combine_rows(const float *rows, int64_t count, int64_t stride, int64_t width,
                            const Combination *what, float *results) {
    int64_t seen = FINITE | RESULT_FINITE;
    for (int64_t from = 0; from < width; from += PIECE) {
        int64_t here = least(PIECE, width - from);
        Sum sum;
        begin_sum(&sum, what, rows + from, here);
        for (int64_t i = 1; i < count; i++)
            add_to_sum(&sum, what, rows + i * stride + from, i, here);
        seen &= end_sum(&sum, what, here, results + from, width);
    }
    return seen;
}
