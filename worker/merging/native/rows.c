// What the engine does to every block: subtract the base, add it again, refuse NaN and infinity.
#include "kernels.h"

static inline int32_t larger_exponent(int32_t largest, int32_t bits) {
    int32_t exponent = bits & EXPONENT;
    return exponent > largest ? exponent : largest;
}

static int32_t flags(int32_t largest_exponent, int32_t differing) {
    return (largest_exponent != EXPONENT) * FINITE + (differing == 0) * EQUAL;
}

int32_t inspect_rows(const float *rows, int64_t count, int64_t width, int64_t stride) {
    int32_t largest = 0, differing = 0;
    for (int64_t i = 0; i < count; i++) {
        const float *row = rows + i * stride;
        for (int64_t j = 0; j < width; j++) {
            int32_t bits = bits_of(row[j]);
            largest = larger_exponent(largest, bits);
            differing |= bits ^ bits_of(rows[j]);
        }
    }
    return flags(largest, differing);
}

int32_t subtract_rows(float *rows, int64_t count, int64_t width, int64_t stride) {
    int32_t largest = 0, differing = 0;
    for (int64_t start = 0; start < width; start += CHUNK) {
        int64_t stop = min(start + CHUNK, width);
        for (int64_t j = start; j < stop; j++) largest = larger_exponent(largest, bits_of(rows[j]));
        for (int64_t i = 1; i < count; i++) {
            float *restrict row = rows + i * stride;
            const float *restrict base = rows;
            for (int64_t j = start; j < stop; j++) {
                int32_t bits = bits_of(row[j]);
                largest = larger_exponent(largest, bits);
                differing |= bits ^ bits_of(base[j]);
                row[j] -= base[j];
            }
        }
    }
    return flags(largest, differing);
}

EXPORT bool add_scaled(const float *base, const float *scales, int64_t count, const float *values,
                       int64_t width, float *results, int64_t result_stride) {
    int32_t largest = 0;
    for (int64_t start = 0; start < width; start += CHUNK) {
        int64_t stop = min(start + CHUNK, width);
        for (int64_t i = 0; i < count; i++) {
            float *restrict result = results + i * result_stride;
            float scale = scales[i];
            for (int64_t j = start; j < stop; j++) {
                float step = scale * values[j];
                result[j] = step == 0.0f ? base[j] : base[j] + step;
                largest = larger_exponent(largest, bits_of(result[j]));
            }
        }
    }
    return largest != EXPONENT;
}

EXPORT bool all_finite(const float *values, int64_t width) {
    return inspect_rows(values, 1, width, width) & FINITE;
}

// The digest of the sources that this library was compiled from.
EXPORT const char *sources(void) { return SOURCES; }
