// Counting numbers by their upper bits, and collecting those between two bounds.
//
// The bits of a float32, read as an integer, order as its magnitude does; with the lower bits of
// negative numbers inverted they order as the number does.
#include "kernels.h"

// The bits above these name the bucket: the exponent and 6 bits of the fraction. The table of all
// buckets fits into the L2 cache.
enum { LOW_BITS = 17 };

static inline int32_t bucket_of(float x, bool magnitudes) {
    if (magnitudes) return (bits_of(x) & MAGNITUDE) >> LOW_BITS;
    int32_t bits = bits_of(x + 0.0f);  // −0 becomes 0.
    return ((((bits >> 31) & MAGNITUDE) ^ bits) >> LOW_BITS) + (1 << (31 - LOW_BITS));
}

EXPORT void count_buckets(const float *values, int64_t width, bool magnitudes, int64_t *counts) {
    int64_t j = 0;
    // Four at a time: the count of a neighbour in the same bucket need not be waited for.
    for (; j + 4 <= width; j += 4) {
        int32_t a = bucket_of(values[j], magnitudes), b = bucket_of(values[j + 1], magnitudes);
        int32_t c = bucket_of(values[j + 2], magnitudes), d = bucket_of(values[j + 3], magnitudes);
        counts[a]++, counts[b]++, counts[c]++, counts[d]++;
    }
    for (; j < width; j++) counts[bucket_of(values[j], magnitudes)]++;
}

static inline float number_of(float x, bool magnitudes) {
    return magnitudes ? __builtin_fabsf(x) : x;
}

// Return how many values were found; there is room for all.
EXPORT int64_t find_between(const float *values, int64_t width, bool magnitudes, float low,
                            float high, float *found) {
    uint8_t marks[CHUNK];
    int64_t count = 0;
    for (int64_t start = 0; start < width; start += CHUNK) {
        int64_t chunk = min(CHUNK, width - start);
        if (chunk < CHUNK) memset(marks, 0, sizeof marks);
        for (int64_t j = 0; j < chunk; j++) {
            float x = number_of(values[start + j], magnitudes);
            marks[j] = (x >= low) & (x <= high) & (x != 0.0f);
        }
        // Few are marked: eight marks are looked at at once.
        for (int64_t eight = 0; eight < chunk; eight += 8) {
            uint64_t any;
            memcpy(&any, marks + eight, sizeof any);
            for (; any; any &= any - 1)
                found[count++] = number_of(
                    values[start + eight + (__builtin_ctzll(any) >> 3)], magnitudes);
        }
    }
    return count;
}
