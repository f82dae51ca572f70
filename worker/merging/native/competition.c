// The competition scores of PCB-Merging, and the mean that they weigh.
#include "kernels.h"

// exp of less is under the smallest normal float32: taken as 0.
static const float least_exponent = -87.0f;
static const float log2_e = 1.44269504f;
// ln 2 in two parts: multiples of the first are exact.
static const float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
// A minimax polynomial of (exp r − 1 − r)/r² for |r| ≤ ln 2 / 2 (Moshier's Cephes, expf).
static const float c5 = 1.9875691500e-4f, c4 = 1.3981999507e-3f, c3 = 8.3334519073e-3f;
static const float c2 = 4.1665795894e-2f, c1 = 1.6666665459e-1f, c0 = 5.0000001201e-1f;

// Write Σⱼdⱼ of a chunk.
static void total_of(const float *tensors, int64_t count, int64_t width, int64_t start,
                     int64_t chunk, float *restrict total) {
    memset(total, 0, chunk * sizeof *total);
    for (int64_t i = 0; i < count; i++) {
        const float *row = tensors + i * width + start;
        for (int64_t j = 0; j < chunk; j++) total[j] += row[j];
    }
}

// Write exp(N·(norm(A)² − 1))·tanh(d·Σⱼdⱼ) of a chunk, never a negative zero.
static void score(const float *restrict row, const float *restrict total, int64_t chunk, float low,
                  float high, float count, bool linear, float *restrict scores) {
    float stretch = __builtin_sqrtf(count) / (high - low);
    for (int64_t j = 0; j < chunk; j++) {
        float size = __builtin_fabsf(row[j]);
        size = size < low ? low : size > high ? high : size;
        size = (size - low) * stretch;
        float exponent = size * size - count;
        exponent = exponent > least_exponent ? exponent : least_exponent;
        float power = __builtin_floorf(exponent * log2_e + 0.5f);
        float rest = exponent - power * ln2_high - power * ln2_low;
        float curve = ((((c5 * rest + c4) * rest + c3) * rest + c2) * rest + c1) * rest + c0;
        float factor = float_of(((int32_t)power + 127) << 23);
        float found = (curve * rest * rest + rest + 1.0f) * factor;
        scores[j] = exponent > least_exponent ? found : 0.0f;
    }
    if (linear)
        for (int64_t j = 0; j < chunk; j++) scores[j] = scores[j] * (row[j] * total[j]) + 0.0f;
    else
        for (int64_t j = 0; j < chunk; j++)
            scores[j] = scores[j] * tanhf(row[j] * total[j]) + 0.0f;
}

// Whether sizes between these bounds are told apart: not where they are equal, nor where they differ
// by so little that `scale` divided by it is infinite.
static inline bool told_apart(float low, float high, float scale) {
    return high > low && scale / (high - low) < INFINITY;
}

EXPORT void competition_scores(const float *tensors, int64_t count, int64_t width,
                               const float *lows, const float *highs, bool linear,
                               float *scores) {
    float total[CHUNK];
    for (int64_t start = 0; start < width; start += CHUNK) {
        int64_t chunk = min(CHUNK, width - start);
        total_of(tensors, count, width, start, chunk, total);
        for (int64_t i = 0; i < count; i++) {
            float *into = scores + i * width + start;
            if (!told_apart(lows[i], highs[i], (float)count))
                memset(into, 0, chunk * sizeof *into);
            else
                score(tensors + i * width + start, total, chunk, lows[i], highs[i], (float)count,
                      linear, into);
        }
    }
}

EXPORT void competition_mean(const float *tensors, int64_t count, int64_t width, const float *lows,
                             const float *highs, bool linear, const float *bottoms,
                             const float *tops, float least_scale, float *restrict result) {
    float total[CHUNK], scores[CHUNK], divisor[CHUNK];
    for (int64_t start = 0; start < width; start += CHUNK) {
        int64_t chunk = min(CHUNK, width - start);
        float *merged = result + start;
        memset(merged, 0, chunk * sizeof *merged);
        memset(divisor, 0, sizeof divisor);
        total_of(tensors, count, width, start, chunk, total);
        for (int64_t i = 0; i < count; i++) {
            float low = lows[i], high = highs[i], bottom = bottoms[i], span = tops[i] - bottom;
            if (!told_apart(low, high, (float)count) || !told_apart(0.0f, span, 1.0f)) continue;
            const float *row = tensors + i * width + start;
            float share = 1.0f / span;
            score(row, total, chunk, low, high, (float)count, linear, scores);
            for (int64_t j = 0; j < chunk; j++) {
                float scale = scores[j] - bottom;
                scale = (scale > 0.0f ? scale : 0.0f) * share;
                float size = __builtin_fabsf(row[j]);
                size = size < low ? low : size > high ? high : size;
                float sign = row[j] > 0.0f ? size : row[j] < 0.0f ? -size : 0.0f;
                divisor[j] += scale;
                merged[j] += sign * scale;
            }
        }
        for (int64_t j = 0; j < chunk; j++)
            merged[j] /= divisor[j] > least_scale ? divisor[j] : least_scale;
    }
}
