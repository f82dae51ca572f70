// Blocks read from files, widened to float32, and combined while they are in the cache.
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "combining.h"

// Where an input's entries begin, and how they are stored.
typedef struct {
    int32_t descriptor;
    int32_t dtype;
    int64_t offset;
} Source;

enum { FLOAT32, FLOAT16, BFLOAT16, FLOAT64 };

static const int64_t sizes[] = {4, 2, 2, 8};

static inline int64_t piece_of(int64_t inputs) {
    return most(CHUNK, least(PIECE, 8 * PIECE / most(inputs, 1) / CHUNK * CHUNK));
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

// Read entries `start` and on into `out`; return 0, or a failed read's errno + 1.
static int64_t read_entries(const Source *source, int64_t start, int64_t count,
                            float *restrict out) {
    int64_t size = sizes[source->dtype], offset = source->offset + start * size;
    if (source->dtype == FLOAT32) return fill(source->descriptor, out, count * size, offset);
    double stored[PIECE];
    int64_t failed = fill(source->descriptor, stored, count * size, offset);
    if (failed) return failed;
    if (source->dtype == FLOAT16) {
        const _Float16 *halves = (const _Float16 *)stored;
        for (int64_t j = 0; j < count; j++) out[j] = (float)halves[j];
    } else if (source->dtype == BFLOAT16) {
        const uint16_t *halves = (const uint16_t *)stored;
        for (int64_t j = 0; j < count; j++)
            out[j] = number_of((int32_t)((uint32_t)halves[j] << 16));
    } else {
        for (int64_t j = 0; j < count; j++) out[j] = (float)stored[j];
    }
    return 0;
}

// What a caller is told of a read that failed: whose it was, and why.
static inline int64_t failure(int64_t input, int64_t failed) { return -(failed << 32 | input); }

// Read entries `start` and on of each input into a row of `rows`; return what `inspect` says.
//
// With `subtract` the first row is subtracted from the others. `gram`, if it is there, is added the
// inner products of the rows, without that of what is subtracted. Of a read that failed, return
// −((errno + 1)·2³² + the input's number); errno is 0 where the file ends.
EXPORT int64_t read_rows(const Source *sources, int64_t count, int64_t start, int64_t width,
                         int32_t subtract, float *rows, double *gram) {
    int64_t piece = piece_of(count), seen = FINITE | EQUAL;
    for (int64_t first = 0; first < width; first += piece) {
        int64_t here = least(piece, width - first);
        for (int64_t i = 0; i < count; i++) {
            int64_t failed = read_entries(sources + i, start + first, here,
                                          rows + i * width + first);
            if (failed) return failure(i, failed);
        }
        float *block = rows + first;
        seen &= subtract ? subtract_rows(block, count, width, here)
                         : inspect_rows(block, count, width, here);
        if (gram) gram_of(block + subtract * width, count - subtract, width, here, gram);
    }
    return seen;
}

// Add the inner products of entries `start` and on to `gram`, which are read as `read_rows` does but
// kept nowhere; return what it does.
EXPORT int64_t read_gram(const Source *sources, int64_t count, int64_t start, int64_t width,
                         int32_t subtract, double *gram) {
    int64_t piece = piece_of(count), seen = FINITE | EQUAL;
    float *rows = malloc(count * piece * sizeof *rows);
    if (!rows) return failure(0, ENOMEM + 1);
    for (int64_t from = 0; from < width && seen >= 0; from += piece) {
        int64_t here = least(piece, width - from);
        int64_t found = read_rows(sources, count, start + from, here, subtract, rows, gram);
        seen = found < 0 ? found : seen & found;
    }
    free(rows);
    return seen;
}

// Read some inputs' entries and write what they combine to into `results`, `stride` apart.
static int64_t combine_piece(const Source *sources, int64_t count, int64_t start, int64_t width,
                             const Combination *what, float *results, int64_t stride) {
    float first[PIECE], row[PIECE];
    Sum sum;
    int64_t failed = read_entries(sources, start, width, first);
    if (failed) return failure(0, failed);
    begin_sum(&sum, what, first, width);
    for (int64_t i = 1; i < count; i++) {
        if ((failed = read_entries(sources + i, start, width, row))) return failure(i, failed);
        add_to_sum(&sum, what, row, i, width);
    }
    return end_sum(&sum, what, width, results, stride);
}

// Read entries `start` and on of each input and write what they combine to into `results`.
//
// Return FINITE if all inputs' entries are, plus RESULT_FINITE if all results are; of a read that
// failed, what `read_rows` does.
EXPORT int64_t read_combined(const Source *sources, int64_t count, int64_t start, int64_t width,
                             const Combination *what, float *results) {
    int64_t seen = FINITE | RESULT_FINITE;
    for (int64_t from = 0; from < width; from += PIECE) {
        int64_t here = least(PIECE, width - from);
        int64_t found =
            combine_piece(sources, count, start + from, here, what, results + from, width);
        if (found < 0) return found;
        seen &= found;
    }
    return seen;
}
