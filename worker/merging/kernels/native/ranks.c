// Counting numbers by their upper bits, and finding those of one bucket.
//
// A float32's bits order like the number: its key is an integer that orders as |x| does (`is_signed`
// false) or as x does, 0 for 0 either way.
#include "kernels.h"

// The bits above tell the bucket: exponent and 6 bits of the fraction, a table for the cache.
enum { LOW_BITS = 17 };

static inline int32_t key_of(float x, bool is_signed) {
    int32_t bits = bits_of(x);
    return is_signed ? ((bits >> 31) & MAGNITUDE) ^ bits : bits & MAGNITUDE;
}

// Add to `counts` how many keys fall into each bucket, that of index 0 being `lowest`.
EXPORT void count_buckets(const float *values, int64_t width, int32_t is_signed, int64_t lowest,
                          int64_t *counts) {
    int64_t j = 0;
    // Four at a time: equal neighbours would wait for each other's count.
    for (; j + 4 <= width; j += 4) {
        int64_t a = (key_of(values[j], is_signed) >> LOW_BITS) - lowest;
        int64_t b = (key_of(values[j + 1], is_signed) >> LOW_BITS) - lowest;
        int64_t c = (key_of(values[j + 2], is_signed) >> LOW_BITS) - lowest;
        int64_t d = (key_of(values[j + 3], is_signed) >> LOW_BITS) - lowest;
        counts[a]++, counts[b]++, counts[c]++, counts[d]++;
    }
    for (; j < width; j++) counts[(key_of(values[j], is_signed) >> LOW_BITS) - lowest]++;
}

// Append the keys that are marked and where they are; return how many there are now.
//
// Most are not: eight marks are looked at at once. `marks` is a chunk, 0 behind its entries.
static inline int64_t append_marked(const float *values, bool is_signed, int64_t start,
                                    const uint8_t *marks, int64_t count, int32_t *keys,
                                    int32_t *places) {
    for (int64_t eight = 0; eight < CHUNK; eight += 8) {
        uint64_t any;
        memcpy(&any, marks + eight, sizeof any);
        while (any) {
            int64_t j = eight + (__builtin_ctzll(any) >> 3);
            keys[count] = key_of(values[start + j], is_signed);
            places[count] = (int32_t)(start + j);
            count++;
            any &= any - 1;
        }
    }
    return count;
}

// Append what is from `low` to `high` and not 0: of numbers, or of magnitudes.
static inline int64_t between(const float *values, int64_t width, bool is_signed, float low,
                              float high, int32_t *keys, int32_t *places) {
    uint8_t marks[CHUNK];
    int64_t count = 0;
    for (int64_t start = 0; start < width; start += CHUNK) {
        int64_t chunk = least(CHUNK, width - start);
        if (chunk < CHUNK) memset(marks, 0, sizeof marks);
        for (int64_t j = 0; j < chunk; j++) {
            float x = values[start + j], number = is_signed ? x : __builtin_fabsf(x);
            marks[j] = (number >= low) & (number <= high) & (number != 0.0f);
        }
        count = append_marked(values, is_signed, start, marks, count, keys, places);
    }
    return count;
}

// Return how many values are from `low` to `high` and not 0.
//
// Their keys and where they are come first in `keys` and `places`, which are as long as `values`.
// Zeros are left out as there may be very many.
EXPORT int64_t find_between(const float *values, int64_t width, float low, float high,
                            int32_t *keys, int32_t *places) {
    return between(values, width, true, low, high, keys, places);
}

// Return what `find_between` does, of magnitudes.
EXPORT int64_t find_sizes_between(const float *values, int64_t width, float low, float high,
                                  int32_t *keys, int32_t *places) {
    return between(values, width, false, low, high, keys, places);
}

// Write how many values are larger than `high`, and how many are 0.
EXPORT void count_above(const float *values, int64_t width, float high, int64_t *found) {
    int64_t above = 0, zeros = 0;
    for (int64_t start = 0; start < width; start += CHUNK) {
        int64_t stop = least(start + CHUNK, width);
        int32_t larger = 0, empty = 0;
        for (int64_t j = start; j < stop; j++) {
            larger += values[j] > high;
            empty += values[j] == 0.0f;
        }
        above += larger;
        zeros += empty;
    }
    found[0] = above;
    found[1] = zeros;
}

// Return how many magnitudes are at most `low`, or at least `high`, not 0; write how many are 0.
//
// The keys of the first come first in `keys`; `keys` and `places` are as for `find_between`.
EXPORT int64_t find_sizes_outside(const float *values, int64_t width, float low, float high,
                                  int32_t *keys, int32_t *places, int64_t *zeros) {
    uint8_t marks[CHUNK];
    int64_t count = 0, empty = 0;
    for (int64_t start = 0; start < width; start += CHUNK) {
        int64_t chunk = least(CHUNK, width - start);
        int32_t here = 0;
        if (chunk < CHUNK) memset(marks, 0, sizeof marks);
        for (int64_t j = 0; j < chunk; j++) {
            float number = __builtin_fabsf(values[start + j]);
            marks[j] = ((number <= low) | (number >= high)) & (number != 0.0f);
            here += number == 0.0f;
        }
        empty += here;
        count = append_marked(values, false, start, marks, count, keys, places);
    }
    *zeros = empty;
    return count;
}

// Return the largest value; there must be one.
EXPORT float largest(const float *values, int64_t width) {
    float lanes[LANES * 4], found = values[0];
    int64_t step = LANES * 4, even = width - width % step;
    for (int l = 0; l < step; l++) lanes[l] = found;
    for (int64_t j = 0; j < even; j += step)
        for (int l = 0; l < step; l++) lanes[l] = values[j + l] > lanes[l] ? values[j + l] : lanes[l];
    for (int64_t j = even; j < width; j++) found = values[j] > found ? values[j] : found;
    for (int l = 0; l < step; l++) found = lanes[l] > found ? lanes[l] : found;
    return found;
}

// Return the index of the bucket that holds a descending rank; -1 if there are fewer keys.
EXPORT int64_t bucket_from_top(const int64_t *counts, int64_t buckets, int64_t rank) {
    int64_t passed = 0;
    for (int64_t index = buckets - 1; index >= 0; index--) {
        passed += counts[index];
        if (passed > rank) return index;
    }
    return -1;
}

// Write `values` into `kept`, 0 for what is smaller than `key` says, as `keep` has it.
EXPORT void keep_largest(const float *values, int64_t width, int32_t key, int64_t split,
                         float *kept) {
    keep(values, width, key, split, kept);
}
