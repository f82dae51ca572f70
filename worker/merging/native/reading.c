// Blocks read from files, widened to float32, and combined while they are in the cache.
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "kernels.h"

// A matrix that is added to the one in a file, as a product of two thin ones. Entry (i, j) becomes
// factorᵢ·(entry + scale·Σₖ leftᵢₖ·rightₖⱼ). `left` and `factors` begin with the row `first_row`;
// without `factors` they are 1.
typedef struct {
    const float *left, *right, *factors;
    int64_t rank, columns, first_row;
    float scale;
} LowRank;

// Where an input's entries begin, how they are stored, and what is added to them, unless it is NULL:
// other stored entries, then a product.
typedef struct Source {
    int32_t descriptor;
    int32_t dtype;
    int64_t offset;
    const struct Source *added;
    const LowRank *change;
} Source;

// Entries of an input that are read at a time: what a read costs beside its bytes is little, and a
// few inputs' pieces stay in a core's share of the cache.
enum { PIECE = 16384 };

enum { FLOAT32, FLOAT16, BFLOAT16, FLOAT64 };

static const int64_t sizes[] = {4, 2, 2, 8};

static inline int64_t piece_of(int64_t inputs) {
    return max(CHUNK, min(PIECE, 8 * PIECE / max(inputs, 1) / CHUNK * CHUNK));
}

// Fill `bytes`; return 0, or a failed read's errno + 1 (1 where the file ends).
static int64_t fill(int descriptor, void *bytes, int64_t size, int64_t offset) {
    for (int64_t done = 0; done < size;) {
        ssize_t count = pread(descriptor, (char *)bytes + done, size - done, offset + done);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) return count < 0 ? errno + 1 : 1;
        done += count;
    }
    return 0;
}

// Widen a float16 with operations that every processor has as vectors.
static inline float float_of_half(uint16_t half) {
    int32_t size = half & 0x7FFF;
    // 112 is the difference of the exponents' biases; those of infinity and NaN grow twice as much.
    int32_t normal = (size << 13) + (size < 0x7C00 ? 112 << 23 : 224 << 23);
    // Subnormal halves are multiples of 2⁻²⁴, the last digit of 0.5.
    int32_t subnormal = bits_of(float_of(size + (126 << 23)) - 0.5f);
    int32_t sign = (int32_t)((uint32_t)(half & 0x8000) << 16);
    return float_of((size < 0x0400 ? subnormal : normal) | sign);
}

// Change entries `start` and on; each sum over the rank is taken in the same order.
static void add_low_rank(const LowRank *change, int64_t start, int64_t count, float *out) {
    int64_t rank = change->rank, columns = change->columns;
    for (int64_t done = 0, width; done < count; done += width) {
        int64_t row = (start + done) / columns - change->first_row;
        int64_t column = (start + done) % columns;
        width = min(min(columns - column, count - done), CHUNK);
        const float *left = change->left + row * rank;
        float sums[CHUNK] = {0};
        // Four at a time, in the order of one at a time.
        int64_t k = 0;
        for (; k + 4 <= rank; k += 4) {
            const float *restrict r0 = change->right + k * columns + column;
            const float *restrict r1 = r0 + columns, *restrict r2 = r1 + columns;
            const float *restrict r3 = r2 + columns, *l = left + k;
            for (int64_t j = 0; j < width; j++)
                sums[j] = sums[j] + l[0] * r0[j] + l[1] * r1[j] + l[2] * r2[j] + l[3] * r3[j];
        }
        for (; k < rank; k++) {
            const float *restrict right = change->right + k * columns + column;
            for (int64_t j = 0; j < width; j++) sums[j] += left[k] * right[j];
        }
        float factor = change->factors ? change->factors[row] : 1.0f, scale = change->scale;
        float *restrict entries = out + done;
        for (int64_t j = 0; j < width; j++)
            entries[j] = factor * (entries[j] + scale * sums[j]);
    }
}

// Read stored entries `start` and on into `out`; return 0, or a failed read's errno + 1.
static int64_t read_stored(const Source *source, int64_t start, int64_t count,
                           float *restrict out) {
    int64_t size = sizes[source->dtype], offset = source->offset + start * size;
    if (source->dtype == FLOAT32) return fill(source->descriptor, out, count * size, offset);
    double stored[PIECE];
    int64_t failed = fill(source->descriptor, stored, count * size, offset);
    if (failed) return failed;
    const uint16_t *halves = (const uint16_t *)stored;
    if (source->dtype == FLOAT16) {
        for (int64_t j = 0; j < count; j++) out[j] = float_of_half(halves[j]);
    } else if (source->dtype == BFLOAT16) {
        for (int64_t j = 0; j < count; j++)
            out[j] = float_of((int32_t)((uint32_t)halves[j] << 16));
    } else {
        for (int64_t j = 0; j < count; j++) out[j] = (float)stored[j];
    }
    return 0;
}

// Read an input's entries, with what is added to them; return as `read_stored` does.
static int64_t read_entries(const Source *source, int64_t start, int64_t count, float *out) {
    int64_t failed = read_stored(source, start, count, out);
    if (!failed && source->added) {
        float added[PIECE];
        failed = read_stored(source->added, start, count, added);
        for (int64_t j = 0; j < count && !failed; j++) out[j] += added[j];
    }
    if (!failed && source->change) add_low_rank(source->change, start, count, out);
    return failed;
}

static inline int64_t failure(int64_t input, int64_t failed) { return -(failed << 32 | input); }

// Read at most a piece's entries of each input into a row, subtract the first if `subtract` says so,
// and add the inner products of the rows, without a subtracted one, to `gram`, unless it is NULL.
//
// Return FINITE if all entries are, plus EQUAL if all inputs have the same bits. If a read failed,
// return −((errno + 1)·2³² + the input's number); errno is 0 where the file ends.
static int64_t read_piece(const Source *sources, int64_t count, bool subtract, int64_t start,
                          int64_t width, float *rows, int64_t stride, double *gram) {
    for (int64_t i = 0; i < count; i++) {
        int64_t failed = read_entries(sources + i, start, width, rows + i * stride);
        if (failed) return failure(i, failed);
    }
    int64_t seen = subtract ? subtract_rows(rows, count, width, stride)
                            : inspect_rows(rows, count, width, stride);
    if (gram) add_inner_products(rows + subtract * stride, count - subtract, width, stride, gram);
    return seen;
}

EXPORT int64_t read_rows(const Source *sources, int64_t count, bool subtract, int64_t start,
                         int64_t width, float *rows, double *gram) {
    int64_t piece = piece_of(count), seen = FINITE | EQUAL;
    for (int64_t from = 0; from < width && seen >= 0; from += piece) {
        int64_t here = min(piece, width - from);
        int64_t found =
            read_piece(sources, count, subtract, start + from, here, rows + from, width, gram);
        seen = found < 0 ? found : seen & found;
    }
    return seen;
}

// Without a combination, entries are read for their inner products alone.
EXPORT int64_t read_combined(const Source *sources, int64_t count, bool subtract, int64_t start,
                             int64_t width, const Combination *combination, float *results,
                             double *gram) {
    int64_t piece = piece_of(count), seen = FINITE | EQUAL | RESULT_FINITE;
    float *rows = malloc(count * piece * sizeof *rows);
    if (!rows) return failure(0, ENOMEM + 1);
    for (int64_t from = 0; from < width && seen >= 0; from += piece) {
        int64_t here = min(piece, width - from);
        int64_t found = read_piece(sources, count, subtract, start + from, here, rows, piece, gram);
        if (found >= 0 && combination &&
            combine_rows(rows, count, here, piece, combination, results + from, width))
            found |= RESULT_FINITE;
        seen = found < 0 ? found : seen & found;
    }
    free(rows);
    return seen;
}
