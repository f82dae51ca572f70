// What the engine does to every block: subtracts the base, adds it again, refuses NaN.
#include "kernels.h"

int32_t inspect_rows(const float *rows, int64_t count, int64_t stride, int64_t width) {
    int32_t worst = 0, differing = 0;
    for (int64_t i = 0; i < count; i++) {
        const float *row = rows + i * stride;
        for (int64_t j = 0; j < width; j++) {
            int32_t bits = bits_of(row[j]), exponent = bits & EXPONENT;
            worst = exponent > worst ? exponent : worst;
            differing |= bits ^ bits_of(rows[j]);
        }
    }
    return (worst != EXPONENT) * FINITE + (differing == 0) * EQUAL;
}

int32_t subtract_rows(float *rows, int64_t count, int64_t stride, int64_t width) {
    int32_t worst = 0, differing = 0;
    for (int64_t start = 0; start < width; start += CHUNK) {
        int64_t stop = least(start + CHUNK, width);
        for (int64_t j = start; j < stop; j++) {
            int32_t exponent = bits_of(rows[j]) & EXPONENT;
            worst = exponent > worst ? exponent : worst;
        }
        for (int64_t i = 1; i < count; i++) {
            float *restrict row = rows + i * stride;
            const float *restrict first = rows;
            for (int64_t j = start; j < stop; j++) {
                int32_t bits = bits_of(row[j]), exponent = bits & EXPONENT;
                worst = exponent > worst ? exponent : worst;
                differing |= bits ^ bits_of(first[j]);
                row[j] -= first[j];
            }
        }
    }
    return (worst != EXPONENT) * FINITE + (differing == 0) * EQUAL;
}

int32_t add_scaled_rows(const float *base, const float *scales, int64_t count, const float *values,
                        int64_t width, int64_t stride, float *results) {
    int32_t worst = 0;
    for (int64_t start = 0; start < width; start += CHUNK) {
        int64_t stop = least(start + CHUNK, width);
        for (int64_t i = 0; i < count; i++) {
            float *restrict result = results + i * stride;
            float scale = scales[i];
            for (int64_t j = start; j < stop; j++) {
                float step = scale * values[j];
                result[j] = step == 0.0f ? base[j] : base[j] + step;
                int32_t exponent = bits_of(result[j]) & EXPONENT;
                worst = exponent > worst ? exponent : worst;
            }
        }
    }
    return worst != EXPONENT;
}

EXPORT int32_t all_finite(const float *values, int64_t width) {
    return inspect_rows(values, 1, width, width) & FINITE;
}

EXPORT int32_t add_scaled(const float *base, const float *scales, int64_t count,
                          const float *values, int64_t width, float *results) {
    return add_scaled_rows(base, scales, count, values, width, width, results);
}
