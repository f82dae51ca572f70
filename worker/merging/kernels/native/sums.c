// Weighted sums over the experts, entry by entry, and their inner products.
#include "kernels.h"

// Write Σ wᵢxᵢ into `result`.
EXPORT void weighted_sum(const float *tensors, int64_t count, int64_t width, const float *weights,
                         float *restrict result) {
    for (int64_t start = 0; start < width; start += CHUNK) {
        int64_t stop = least(start + CHUNK, width);
        for (int64_t j = start; j < stop; j++) result[j] = weights[0] * tensors[j];
        for (int64_t i = 1; i < count; i++) {
            const float *row = tensors + i * width;
            float weight = weights[i];
            for (int64_t j = start; j < stop; j++) result[j] += weight * row[j];
        }
    }
}

// The products of float32 are exact in float64, so that it does not matter whether the processor
// rounds them before it adds.
void gram_of(const float *rows, int64_t count, int64_t stride, int64_t width, double *gram) {
#pragma clang fp contract(fast)
    for (int64_t start = 0; start < width; start += CHUNK) {
        int64_t stop = least(start + CHUNK, width), even = stop - (stop - start) % LANES;
        for (int64_t i = 0; i < count; i++) {
            const float *first = rows + i * stride;
            for (int64_t k = i; k < count; k++) {
                const float *second = rows + k * stride;
                doubles lanes = {0};
                for (int64_t j = start; j < even; j += LANES)
                    lanes += __builtin_convertvector(*(const floats *)(first + j), doubles) *
                             __builtin_convertvector(*(const floats *)(second + j), doubles);
                double total = sum_of(lanes);
                for (int64_t j = even; j < stop; j++) total += (double)first[j] * second[j];
                gram[i * count + k] += total;
            }
        }
    }
}

EXPORT void add_inner_products(const float *tensors, int64_t count, int64_t width, double *gram) {
    gram_of(tensors, count, width, width, gram);
}
