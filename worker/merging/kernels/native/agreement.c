// Trimmed sums: over the experts that agree in sign (TIES, SCE), or within a band of sizes.
#include "kernels.h"

// Write Σ wᵢxᵢ over the i whose wᵢxᵢ has the elected sign; return how many those are.
//
// Elected is the sign of Σ xᵢ, or with `weighted_votes` of Σ wᵢxᵢ; a sum of 0 counts as positive.
// xᵢ is trimmed first, by keys[i] and splits[i] as `keep` has it. With `normalize` the sum is
// divided by Σ wᵢ over the same i, 0 for 0.
EXPORT int64_t agreeing_sum(const float *tensors, int64_t count, int64_t width,
                            const float *weights, int32_t weighted_votes, const int32_t *keys,
                            const int64_t *splits, int32_t normalize, float *restrict result) {
    float kept[CHUNK], total[CHUNK], divisor[CHUNK];
    int64_t agreeing = 0;
    for (int64_t start = 0; start < width; start += CHUNK) {
        int64_t chunk = least(CHUNK, width - start);
        float *merged = result + start;
        memset(total, 0, sizeof total);
        memset(divisor, 0, sizeof divisor);
        memset(merged, 0, chunk * sizeof *merged);
        for (int64_t i = 0; i < count; i++) {
            keep(tensors + i * width + start, chunk, keys[i], splits[i] - start, kept);
            float share = weighted_votes ? weights[i] : 1.0f;
            for (int64_t j = 0; j < chunk; j++) total[j] += share * kept[j];
        }
        for (int64_t i = 0; i < count; i++) {
            // Cheaper once more than from memory: the chunk's rows are still in the cache.
            keep(tensors + i * width + start, chunk, keys[i], splits[i] - start, kept);
            float weight = weights[i];
            int32_t along = 0;
            for (int64_t j = 0; j < chunk; j++) {
                float value = kept[j] * weight;
                bool agrees = total[j] >= 0.0f ? value > 0.0f : value < 0.0f;
                merged[j] += agrees ? value : 0.0f;
                divisor[j] += agrees ? weight : 0.0f;
                along += agrees;
            }
            agreeing += along;
        }
        if (normalize)
            for (int64_t j = 0; j < chunk; j++)
                merged[j] = divisor[j] != 0.0f ? merged[j] / divisor[j] : 0.0f;
    }
    return agreeing;
}

// Write Σ wᵢxᵢ into `result`, xᵢ 0 outside its band.
//
// In it is what `keep` keeps by keys[i, 0] and splits[i, 0], but not by keys[i, 1] and
// splits[i, 1].
EXPORT void banded_sum(const float *tensors, int64_t count, int64_t width, const float *weights,
                       const int32_t *keys, const int64_t *splits, float *restrict result) {
    float kept[CHUNK], large[CHUNK];
    for (int64_t start = 0; start < width; start += CHUNK) {
        int64_t chunk = least(CHUNK, width - start);
        float *total = result + start;
        memset(total, 0, chunk * sizeof *total);
        for (int64_t i = 0; i < count; i++) {
            const float *row = tensors + i * width + start;
            keep(row, chunk, keys[2 * i], splits[2 * i] - start, kept);
            keep(row, chunk, keys[2 * i + 1], splits[2 * i + 1] - start, large);
            for (int64_t j = 0; j < chunk; j++) total[j] += weights[i] * (kept[j] - large[j]);
        }
    }
}

// Write each entry's standard deviation over the experts; return how many are not 0.
//
// 0 exactly where all are equal. Of differences to the first expert, brought near 1 by a power of
// two for each chunk, so that no square overflows; what is 2⁷⁵ times smaller than the largest beside
// it counts as 0.
EXPORT int64_t spread(const float *tensors, int64_t count, int64_t width, float *restrict result) {
    float mean[CHUNK], squares[CHUNK];
    float share = (float)(1.0 / (double)count);
    int64_t nonzero = 0;
    for (int64_t start = 0; start < width; start += CHUNK) {
        int64_t chunk = least(CHUNK, width - start);
        const float *first = tensors + start;
        int32_t largest = 0;
        for (int64_t i = 1; i < count; i++) {
            const float *row = first + i * width;
            for (int64_t j = 0; j < chunk; j++) {
                int32_t size = bits_of(row[j] - first[j]) & MAGNITUDE;
                largest = size > largest ? size : largest;
            }
        }
        if (largest == 0) {
            memset(result + start, 0, chunk * sizeof *result);
            continue;
        }
        // The exponent's bits, of which a power of two's float is made.
        int32_t power = (int32_t)least(most(254 - (largest >> 23), 7), 247);
        float scale = number_of(power << 23), back = number_of((254 - power) << 23);
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
                float off = (row[j] - first[j]) * scale - mean[j];
                squares[j] += off * off;
            }
        }
        int32_t here = 0;
        for (int64_t j = 0; j < chunk; j++) {
            float found = __builtin_sqrtf(squares[j] * share) * back;
            result[start + j] = found;
            here += found != 0.0f;
        }
        nonzero += here;
    }
    return nonzero;
}

// Add to `energies` each expert's Σ xᵢ² over the entries that `keep` keeps of `ranked`.
EXPORT void add_energies(const float *tensors, int64_t count, int64_t width, const float *ranked,
                         int32_t key, int64_t split, double *energies) {
    CONTRACTED
    float selected[CHUNK];
    for (int64_t start = 0; start < width; start += CHUNK) {
        int64_t chunk = least(CHUNK, width - start), even = chunk - chunk % LANES;
        // 1 where it is kept: a number of `ranked` may be too small to multiply by.
        int64_t here = least(most(split - start, 0), chunk);
        for (int64_t j = 0; j < chunk; j++) {
            int32_t size = bits_of(ranked[start + j]) & MAGNITUDE;
            selected[j] = size > key || (size == key && j < here) ? 1.0f : 0.0f;
        }
        for (int64_t i = 0; i < count; i++) {
            const float *row = tensors + i * width + start;
            doubles lanes = {0};
            for (int64_t j = 0; j < even; j += LANES) {
                doubles kept = __builtin_convertvector(
                    *(const floats *)(row + j) * *(const floats *)(selected + j), doubles);
                lanes += kept * kept;
            }
            double total = sum_of(lanes);
            for (int64_t j = even; j < chunk; j++) {
                double kept = (double)(row[j] * selected[j]);
                total += kept * kept;
            }
            energies[i] += total;
        }
    }
}

// Set `values` to 0 where `keep` does not keep what is in `ranked`.
EXPORT void clear_unselected(float *restrict values, const float *restrict ranked, int64_t width,
                             int32_t key, int64_t split) {
    int64_t here = least(most(split, 0), width);
    for (int64_t j = 0; j < here; j++)
        if ((bits_of(ranked[j]) & MAGNITUDE) < key) values[j] = 0.0f;
    for (int64_t j = here; j < width; j++)
        if ((bits_of(ranked[j]) & MAGNITUDE) <= key) values[j] = 0.0f;
}
