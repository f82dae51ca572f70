// Trimmed sums: over the experts that agree in sign (TIES, SCE), or within bands of magnitudes; and
// the selection of entries by their spread (SCE).
#include "kernels.h"

// Write `values` whose magnitude is from `low` to `high`, 0 for the others; return how many are kept.
static inline int32_t trim(const float *restrict values, int64_t count, float low, float high,
                           float *restrict kept) {
    int32_t within = 0;
    for (int64_t j = 0; j < count; j++) {
        float size = __builtin_fabsf(values[j]);
        bool keep = (size >= low) & (size <= high);
        kept[j] = keep ? values[j] : 0.0f;
        within += keep;
    }
    return within;
}

// Add a trimmed row's entries, weighted, to `merged` where they agree with the sign of `votes`, and
// the weight to `divisor`; return how many agree.
static int32_t add_agreeing(const float *restrict kept, const float *restrict votes, int64_t chunk,
                            float weight, float *restrict merged, float *restrict divisor) {
    int32_t agreeing = 0;
    for (int64_t j = 0; j < chunk; j++) {
        float value = kept[j] * weight;
        // A mask: gcc would make branches of conditions, 20 times slower.
        int32_t agrees = -((votes[j] >= 0.0f ? value : -value) > 0.0f);
        merged[j] += float_of(bits_of(value) & agrees);
        divisor[j] += float_of(bits_of(weight) & agrees);
        agreeing -= agrees;
    }
    return agreeing;
}

EXPORT void elected_sum(const float *tensors, int64_t count, int64_t width, const float *weights,
                        const float *cuts, bool weighted_votes, bool normalize,
                        float *restrict result, int64_t *counts) {
    float kept[CHUNK], votes[CHUNK], divisor[CHUNK];
    counts[0] = counts[1] = 0;
    for (int64_t start = 0; start < width; start += CHUNK) {
        int64_t chunk = min(CHUNK, width - start);
        float *merged = result + start;
        memset(votes, 0, sizeof votes);
        memset(divisor, 0, sizeof divisor);
        memset(merged, 0, chunk * sizeof *merged);
        for (int64_t i = 0; i < count; i++) {
            counts[1] += trim(tensors + i * width + start, chunk, cuts[i], INFINITY, kept);
            float vote = weighted_votes ? weights[i] : 1.0f;
            for (int64_t j = 0; j < chunk; j++) votes[j] += vote * kept[j];
        }
        for (int64_t i = 0; i < count; i++) {
            // Trimmed again: the rows are still in the cache, which is cheaper than keeping copies.
            trim(tensors + i * width + start, chunk, cuts[i], INFINITY, kept);
            counts[0] += add_agreeing(kept, votes, chunk, weights[i], merged, divisor);
        }
        if (normalize)
            for (int64_t j = 0; j < chunk; j++)
                merged[j] = divisor[j] != 0.0f ? merged[j] / divisor[j] : 0.0f;
    }
}

EXPORT int64_t banded_sum(const float *tensors, int64_t count, int64_t width, const float *weights,
                          const float *lows, const float *highs, float *restrict result) {
    float kept[CHUNK];
    int64_t within = 0;
    for (int64_t start = 0; start < width; start += CHUNK) {
        int64_t chunk = min(CHUNK, width - start);
        float *total = result + start;
        memset(total, 0, chunk * sizeof *total);
        for (int64_t i = 0; i < count; i++) {
            within += trim(tensors + i * width + start, chunk, lows[i], highs[i], kept);
            float weight = weights[i];
            for (int64_t j = 0; j < chunk; j++) total[j] += weight * kept[j];
        }
    }
    return within;
}

// Return the power of two that brings a chunk's largest difference to the first row near 1, as an
// exponent's bits: squares of what it scales do not overflow.
static int32_t scale_exponent(const float *first, int64_t count, int64_t width, int64_t chunk) {
    int32_t largest = 0;
    for (int64_t i = 1; i < count; i++) {
        const float *row = first + i * width;
        for (int64_t j = 0; j < chunk; j++) {
            int32_t size = bits_of(row[j] - first[j]) & MAGNITUDE;
            largest = size > largest ? size : largest;
        }
    }
    return (int32_t)min(max(254 - (largest >> 23), 7), 247);
}

// The standard deviation of differences to the first expert, scaled by a power of two.
EXPORT void spread(const float *tensors, int64_t count, int64_t width, float *restrict result) {
    float mean[CHUNK], squares[CHUNK];
    float share = (float)(1.0 / (double)count);
    for (int64_t start = 0; start < width; start += CHUNK) {
        int64_t chunk = min(CHUNK, width - start);
        const float *first = tensors + start;
        int32_t exponent = scale_exponent(first, count, width, chunk);
        float scale = float_of(exponent << 23), inverse = float_of((254 - exponent) << 23);
        memset(mean, 0, sizeof mean);
        for (int64_t i = 1; i < count; i++) {
            const float *row = first + i * width;
            for (int64_t j = 0; j < chunk; j++) mean[j] += (row[j] - first[j]) * scale;
        }
        for (int64_t j = 0; j < chunk; j++) {
            mean[j] *= share;
            squares[j] = mean[j] * mean[j];
        }
        for (int64_t i = 1; i < count; i++) {
            const float *row = first + i * width;
            for (int64_t j = 0; j < chunk; j++) {
                float deviation = (row[j] - first[j]) * scale - mean[j];
                squares[j] += deviation * deviation;
            }
        }
        for (int64_t j = 0; j < chunk; j++)
            result[start + j] = __builtin_sqrtf(squares[j] * share) * inverse;
    }
}

EXPORT void clear_below(float *restrict values, const float *restrict ranked, int64_t width,
                        float cut) {
    for (int64_t j = 0; j < width; j++)
        values[j] = float_of(bits_of(values[j]) & -(int32_t)!(ranked[j] < cut));
}
