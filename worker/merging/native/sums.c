// Weighted sums over the experts, entry by entry.
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
        sum_chunk(tensors + start, count, width, min(CHUNK, width - start), weights,
                  result + start);
}
