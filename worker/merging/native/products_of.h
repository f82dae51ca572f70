// Products of matrices computed in REAL, float or double: included once for each by products.c.
//
// Both factors are first copied to panels, as many rows of the left one, or columns of the right
// one, as a tile of the result has: a tile's sums then stay in registers all along the depth.

typedef REAL OF(vector) __attribute__((vector_size(WIDTH), aligned(sizeof(REAL))));
enum { OF(ENTRIES) = WIDTH / sizeof(REAL), OF(COLUMNS) = VECTORS * WIDTH / sizeof(REAL) };

// Copy the upper triangle of a square matrix into the lower one.
EXPORT void OF(mirror)(REAL *matrix, int64_t n) {
    for (int64_t top = 0; top < n; top += TILE)
        for (int64_t left = top; left < n; left += TILE)
            for (int64_t i = top; i < min(top + TILE, n); i++)
                for (int64_t j = max(left, i + 1); j < min(left + TILE, n); j++)
                    matrix[j * n + i] = matrix[i * n + j];
}

// Copy `lines` lines of `depth` entries to panels of `width` lines each, filled up with zeros:
// entry p of a panel's line l comes to p·width + l.
#define PACK(name, TYPE)                                                                           \
    static inline __attribute__((always_inline)) void OF(name)(                                    \
        const TYPE *from, int64_t along, int64_t across, int64_t lines, int64_t depth,             \
        const int64_t width, REAL *restrict to) {                                                  \
        for (int64_t first = 0; first < lines; first += width, to += depth * width) {              \
            const TYPE *panel = from + first * across;                                             \
            int64_t count = min(width, lines - first);                                           \
            if (count == width && across == 1) {                                                   \
                for (int64_t p = 0; p < depth; p++)                                                \
                    for (int64_t l = 0; l < width; l++) to[p * width + l] = panel[p * along + l];  \
                continue;                                                                          \
            }                                                                                      \
            if (count < width) memset(to, 0, depth * width * sizeof *to);                          \
            for (int64_t start = 0; start < depth; start += 16)                                    \
                for (int64_t l = 0; l < count; l++)                                                \
                    for (int64_t p = start; p < min(start + 16, depth); p++)                     \
                        to[p * width + l] = panel[p * along + l * across];                         \
        }                                                                                          \
    }
PACK(pack_floats, float)
PACK(pack_doubles, double)
#undef PACK

static inline __attribute__((always_inline)) void OF(pack)(const Matrix *from, bool transposed,
                                                           int64_t line, int64_t entry,
                                                           int64_t lines, int64_t depth,
                                                           const int64_t width, REAL *to) {
    int64_t across = transposed ? from->across : from->down;
    int64_t along = transposed ? from->down : from->across;
    int64_t start = line * across + entry * along;
    if (from->doubles)
        OF(pack_doubles)((double *)from->entries + start, along, across, lines, depth, width, to);
    else
        OF(pack_floats)((float *)from->entries + start, along, across, lines, depth, width, to);
}

// Sum a tile of ROWS rows over the depth of two panels, in the left one of which entries are `step`
// apart, and write it, or add it, into rows `down` apart.
static void OF(sum_tile)(int64_t depth, const REAL *restrict left, int64_t step,
                         const REAL *restrict right, REAL *restrict to, int64_t down, bool add) {
    OF(vector) sums[ROWS][VECTORS] = {0};
    for (int64_t p = 0; p < depth; p++) {
        OF(vector) line[VECTORS];
        UNROLLED
        for (int v = 0; v < VECTORS; v++) line[v] = *(OF(vector) *)(right + v * OF(ENTRIES));
        UNROLLED
        for (int r = 0; r < ROWS; r++) {
            OF(vector) factor = left[r] - (OF(vector)){0};
            UNROLLED
            for (int v = 0; v < VECTORS; v++) sums[r][v] += factor * line[v];
        }
        left += step;
        right += OF(COLUMNS);
    }
    UNROLLED
    for (int r = 0; r < ROWS; r++) {
        UNROLLED
        for (int v = 0; v < VECTORS; v++) {
            OF(vector) *place = (OF(vector) *)(to + r * down + v * OF(ENTRIES));
            *place = add ? *place + sums[r][v] : sums[r][v];
        }
    }
}

// Write a tile, or add it, as far as it is inside of the result.
#define PUT(name, TYPE)                                                                            \
    static void OF(name)(const REAL *restrict tile, TYPE *restrict to, int64_t down, int64_t rows, \
                         int64_t columns, bool add) {                                              \
        for (int64_t r = 0; r < rows; r++)                                                         \
            for (int64_t c = 0; c < columns; c++) {                                                \
                TYPE sum = (TYPE)tile[r * OF(COLUMNS) + c];                                        \
                to[r * down + c] = add ? to[r * down + c] + sum : sum;                             \
            }                                                                                      \
    }
PUT(put_floats, float)
PUT(put_doubles, double)
#undef PUT

bool OF(multiply)(const Matrix *left, const Matrix *right, const Matrix *result, int64_t rows,
                  int64_t depth, int64_t columns, bool add, bool upper) {
    bool alike = result->doubles == (sizeof(REAL) == sizeof(double));
    int64_t stretch = alike ? SHALLOW / (int64_t)sizeof(REAL) : DEEP;
    int64_t deepest = min(depth, stretch), high = min(rows, HEIGHT);
    int64_t wide = (columns + OF(COLUMNS) - 1) / OF(COLUMNS) * OF(COLUMNS);
    high = (high + ROWS - 1) / ROWS * ROWS;
    REAL *panels = aligned_alloc(64, (deepest * (wide + high) * sizeof(REAL) + 63) / 64 * 64);
    if (!panels) return false;
    REAL *left_panels = panels + deepest * wide;
    // Of a symmetric product the right factor's panels hold those of the left one.
    bool same = OF(COLUMNS) % ROWS == 0 && left->entries == right->entries &&
                left->down == right->across && left->across == right->down &&
                left->doubles == right->doubles && rows == columns;
    REAL tile[ROWS * OF(COLUMNS)] __attribute__((aligned(64)));
    for (int64_t p = 0; p < depth; p += stretch, add = true) {
        int64_t deep = min(stretch, depth - p);
        OF(pack)(right, true, 0, p, columns, deep, OF(COLUMNS), panels);
        for (int64_t top = 0; top < rows; top += HEIGHT) {
            int64_t some = min(HEIGHT, rows - top);
            if (!same) OF(pack)(left, false, top, p, some, deep, ROWS, left_panels);
            for (int64_t c = 0; c < columns; c += OF(COLUMNS))
                for (int64_t r = 0; r < some; r += ROWS) {
                    if (upper && c + OF(COLUMNS) <= top + r) break;
                    int64_t row = top + r, within = row % OF(COLUMNS), at = row * result->down + c;
                    const REAL *panel = panels + c * deep, *left_panel = left_panels + r * deep;
                    if (same) left_panel = panels + (row - within) * deep + within;
                    int64_t step = same ? (int64_t)OF(COLUMNS) : (int64_t)ROWS;
                    int64_t down = min(ROWS, some - r), across = min(OF(COLUMNS), columns - c);
                    if (alike && down == ROWS && across == OF(COLUMNS)) {
                        OF(sum_tile)(deep, left_panel, step, panel, (REAL *)result->entries + at,
                                     result->down, add);
                        continue;
                    }
                    OF(sum_tile)(deep, left_panel, step, panel, tile, OF(COLUMNS), false);
                    if (result->doubles)
                        OF(put_doubles)(tile, (double *)result->entries + at, result->down, down,
                                        across, add);
                    else
                        OF(put_floats)(tile, (float *)result->entries + at, result->down, down,
                                       across, add);
                }
        }
    }
    free(panels);
    return true;
}
