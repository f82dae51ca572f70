// Symmetric tridiagonal matrices: their eigenvalues, their eigenvectors once those are known, and how
// far vectors are from orthogonal.
//
// Eigenvalues: the root-free QL iteration, as in LAPACK's dsterf (Pal, Walker, Kahan; Parlett 1998,
// 8.15), of several matrices at once, one in each lane of a vector: a step waits for the one before it,
// so that one matrix would keep a processor waiting. All lanes sweep together over the rows that any
// of them has left; the rows from `first` to `last` are those of a lane's current block.
#include <stdlib.h>

#include "kernels.h"

// Matrices are solved in lanes of at most four, and no wider than a register with gcc.
#ifdef __clang__
enum { MATRICES = 4 };
#else
enum { MATRICES = WIDTH < 32 ? WIDTH / 8 : 4 };
#endif

typedef double quads __attribute__((vector_size(8 * MATRICES), aligned(8)));
typedef int64_t quad_indices __attribute__((vector_size(8 * MATRICES), aligned(8)));

// Lanes of `yes` where the mask is set, of `no` elsewhere; and magnitudes.
#define LANE_FUNCTIONS(vector, indices, pick, magnitude)                                          \
    static inline vector pick(indices mask, vector yes, vector no) {                              \
        return (vector)((mask & (indices)yes) | (~mask & (indices)no));                            \
    }                                                                                              \
    static inline vector magnitude(vector x) { return (vector)((indices)x & INT64_MAX); }
LANE_FUNCTIONS(quads, quad_indices, quad_pick, quad_magnitude)
LANE_FUNCTIONS(doubles, integers, pick, magnitude)

// The square of an off-diagonal entry counts as 0 if it is this small beside its two neighbours on the
// diagonal, or beside the square of the largest entry (2⁻⁷⁵ of that entry is less than rounding leaves
// of any Gram matrix's smallest values).
#define NEGLIGIBLE 0x1p-106
#define NOTHING 0x1p-150

static inline bool is_negligible(double square, double one, double other, double nothing) {
    return square <= NEGLIGIBLE * __builtin_fabs(one * other) + nothing;
}

typedef struct {
    quads *diagonal, *squares;
    quads nothing;
    int64_t n;
    quad_indices first, last;
} Lanes;

// Return the last row of a lane's block that begins at `from`.
static int64_t block_end(const Lanes *lanes, int lane, int64_t from) {
    int64_t i = from;
    for (; i < lanes->n - 1; i++) {
        double here = lanes->diagonal[i][lane], next = lanes->diagonal[i + 1][lane];
        if (is_negligible(lanes->squares[i][lane], here, next, lanes->nothing[lane])) break;
    }
    return i;
}

// Move each lane on to its next block of more than one entry; return whether any lane has one.
static bool next_blocks(Lanes *lanes) {
    bool any = false;
    for (int lane = 0; lane < MATRICES; lane++) {
        while (lanes->first[lane] < lanes->n && lanes->first[lane] >= lanes->last[lane]) {
            if (lanes->first[lane] == lanes->last[lane]) lanes->first[lane]++;
            lanes->last[lane] = lanes->first[lane] < lanes->n
                ? block_end(lanes, lane, lanes->first[lane])
                : lanes->n;
        }
        any |= lanes->first[lane] < lanes->n;
    }
    return any;
}

// One sweep from each lane's `last` up to its `first`, shifted to the eigenvalue of the two rows there
// that is nearer to the first.
static void sweep(Lanes *lanes) {
    quads shift = {0}, sine = {0}, cosine = {0}, gamma = {0};
    int64_t top = lanes->n, bottom = 0;
    for (int lane = 0; lane < MATRICES; lane++) {
        int64_t l = lanes->first[lane], m = lanes->last[lane];
        if (l >= m) continue;
        top = min(top, l);
        bottom = max(bottom, m);
        double root = __builtin_sqrt(lanes->squares[l][lane]);
        double half = (lanes->diagonal[l + 1][lane] - lanes->diagonal[l][lane]) / (2 * root);
        double radius = __builtin_sqrt(half * half + 1);
        shift[lane] = lanes->diagonal[l][lane] - root / (half + __builtin_copysign(radius, half));
        gamma[lane] = lanes->diagonal[m][lane] - shift[lane];
    }
    cosine += 1;
    quads p = gamma * gamma, below = {0}, nothing = lanes->nothing;
    quad_indices first = lanes->first, last = lanes->last, end = last;
    for (int lane = 0; lane < MATRICES; lane++)
        if (first[lane] < last[lane] && last[lane] + 1 < lanes->n)
            below[lane] = lanes->diagonal[last[lane] + 1][lane];
    for (int64_t i = bottom - 1; i >= top; i--) {
        quad_indices here = {0};
        here += i;
        quad_indices active = (here >= first) & (here < last);
        quads square = lanes->squares[i], alpha = lanes->diagonal[i];
        quads r = p + square, old_cosine = cosine, old_gamma = gamma;
        // The row below is settled now, but for its neighbour above.
        quads off_diagonal = sine * r;
        quads c = p / r, s = square / r, inverse = r / p;
        quads g = c * (alpha - shift) - s * old_gamma;
        quads settled = old_gamma + (alpha - g);
        quads following = g * g * inverse;
        following = quad_pick(c == 0, old_cosine * square, following);
        quad_indices split = off_diagonal <= NEGLIGIBLE * quad_magnitude(settled * below) + nothing;
        end = (quad_indices)quad_pick(active & split, (quads)(here + 1), (quads)end);
        lanes->squares[i + 1] = quad_pick(active, off_diagonal, lanes->squares[i + 1]);
        lanes->diagonal[i + 1] = quad_pick(active, settled, lanes->diagonal[i + 1]);
        below = quad_pick(active, settled, below);
        p = quad_pick(active, following, p);
        sine = quad_pick(active, s, sine);
        cosine = quad_pick(active, c, cosine);
        gamma = quad_pick(active, g, gamma);
    }
    for (int lane = 0; lane < MATRICES; lane++) {
        int64_t l = first[lane];
        if (l >= last[lane]) continue;
        double square = sine[lane] * p[lane], value = shift[lane] + gamma[lane];
        lanes->squares[l][lane] = square;
        lanes->diagonal[l][lane] = value;
        bool found = is_negligible(square, value, lanes->diagonal[l + 1][lane], nothing[lane]);
        lanes->last[lane] = found ? l : end[lane];
    }
}

// Load a matrix into a lane; a lane that is not `used` has nothing to do. Return whether all entries
// and the squares of all are finite.
static bool load(Lanes *lanes, int lane, const double *diagonal, const double *off_diagonal,
                 bool used) {
    int64_t n = lanes->n;
    bool finite = true;
    // Eigenvalues are found from the first row on: sooner if the smaller entries are there.
    bool reversed = __builtin_fabs(diagonal[n - 1]) < __builtin_fabs(diagonal[0]);
    double largest = 0;
    for (int64_t i = 0; i < n; i++) {
        double entry = diagonal[reversed ? n - 1 - i : i];
        double next = i == n - 1 ? 0 : off_diagonal[reversed ? n - 2 - i : i];
        finite &= __builtin_isfinite(entry) && __builtin_isfinite(next);
        lanes->diagonal[i][lane] = entry;
        lanes->squares[i][lane] = used ? next * next : 0;
        largest = fmax(largest, fmax(__builtin_fabs(entry), __builtin_fabs(next)));
    }
    lanes->nothing[lane] = largest * largest * NOTHING;
    lanes->first[lane] = used ? 0 : n;
    lanes->last[lane] = used ? block_end(lanes, lane, 0) : n;
    return finite && __builtin_isfinite(largest * largest);
}

// Return 1 if there is no memory, 2 if there is no solution: NaN, infinity, or too many sweeps.
EXPORT int32_t tridiagonal_values(const double *diagonals, const double *off_diagonals, int64_t n,
                                  int64_t count, double *values) {
    if (n == 0) return 0;
    quads *room = aligned_alloc(64, (2 * n * sizeof *room + 63) / 64 * 64);
    if (!room) return 1;
    bool solved = true;
    for (int64_t from = 0; from < count && solved; from += MATRICES) {
        Lanes lanes = {.diagonal = room, .squares = room + n, .n = n};
        for (int lane = 0; lane < MATRICES; lane++) {
            int64_t matrix = min(from + lane, count - 1);
            solved &= load(&lanes, lane, diagonals + matrix * n, off_diagonals + matrix * n,
                           from + lane < count);
        }
        for (int64_t sweeps = 30 * n; solved && next_blocks(&lanes); sweeps--) {
            solved = sweeps > 0;
            sweep(&lanes);
        }
        for (int64_t lane = 0; lane < min(MATRICES, count - from); lane++)
            for (int64_t i = 0; i < n; i++) values[(from + lane) * n + i] = room[i][lane];
    }
    free(room);
    return solved ? 0 : 2;
}

// Eigenvectors by twisted factorisations (Dhillon and Parlett 2004).

// A pivot too small to divide by is replaced by −`smallest`.
static inline doubles safe(doubles pivot, double smallest) {
    return pick(magnitude(pivot) < smallest, all(-smallest), pivot);
}

// An entry too small to matter beside a 1 becomes 0, before subnormal numbers slow everything down.
static inline doubles flush(doubles entry) {
    return pick(magnitude(entry) < 1e-150, all(0), entry);
}

static inline integers index_of(int64_t i) { return i + (integers){0}; }

// Factor T − λ of LANES eigenvalues λ from the top, L·D₊·Lᵀ, and from the bottom, U·D₋·Uᵀ: `down` and
// `up` get the pivots, `twist` the row where the twisted pivot γ = D₊ + D₋ − (T − λ) is smallest.
static void factor(const double *diagonal, const double *off_diagonal, int64_t n,
                   const doubles *values, double smallest, doubles *down, doubles *up,
                   integers *twist) {
    for (int64_t i = 0; i < n; i++)
        UNROLLED
        for (int p = 0; p < PARTS; p++) {
            doubles pivot = diagonal[i] - values[p];
            if (i) pivot -= off_diagonal[i - 1] * off_diagonal[i - 1] / down[(i - 1) * PARTS + p];
            down[i * PARTS + p] = safe(pivot, smallest);
        }
    doubles best[PARTS] = {0};
    for (int64_t i = n - 1; i >= 0; i--)
        UNROLLED
        for (int p = 0; p < PARTS; p++) {
            doubles shifted = diagonal[i] - values[p], pivot = shifted;
            if (i < n - 1) pivot -= off_diagonal[i] * off_diagonal[i] / up[(i + 1) * PARTS + p];
            up[i * PARTS + p] = pivot = safe(pivot, smallest);
            doubles gamma = magnitude(down[i * PARTS + p] + pivot - shifted);
            if (i == n - 1) best[p] = gamma, twist[p] = index_of(i);
            integers better = gamma < best[p];
            best[p] = pick(better, gamma, best[p]);
            twist[p] = (better & index_of(i)) | (~better & twist[p]);
        }
}

// Replace the pivots in `down` by the vectors, which are 1 at `twist` and follow from both factors;
// write the squares of their lengths.
static void follow(const double *off_diagonal, int64_t n, const integers *twist, doubles *down,
                   const doubles *up, doubles *squares) {
    doubles entry[PARTS] = {0}, zero = {0};
    for (int64_t i = n - 1; i >= 0; i--)
        UNROLLED
        for (int p = 0; p < PARTS; p++) {
            doubles *place = down + i * PARTS + p;
            doubles above = i < n - 1 ? flush(-(off_diagonal[i] / *place) * entry[p]) : zero;
            integers here = index_of(i);
            *place = entry[p] = pick(here == twist[p], zero + 1, pick(here < twist[p], above, zero));
        }
    for (int p = 0; p < PARTS; p++) entry[p] = squares[p] = zero;
    for (int64_t i = 0; i < n; i++)
        UNROLLED
        for (int p = 0; p < PARTS; p++) {
            doubles *place = down + i * PARTS + p;
            doubles below =
                i ? flush(-(off_diagonal[i - 1] / up[i * PARTS + p]) * entry[p]) : zero;
            *place = entry[p] = pick(index_of(i) > twist[p], below, *place);
            squares[p] += entry[p] * entry[p];
        }
}

// Return false if there is no memory.
EXPORT bool tridiagonal_vectors(const double *diagonal, const double *off_diagonal, int64_t n,
                                const double *values, int64_t count, double smallest,
                                double *vectors, int64_t stride) {
    doubles *down = aligned_alloc(64, 2 * n * PARTS * sizeof *down), *up = down + n * PARTS;
    if (!down) return false;
    for (int64_t first = 0; first < count; first += LANES) {
        double some[LANES], squares[LANES];
        integers twist[PARTS] = {0};
        for (int l = 0; l < LANES; l++) some[l] = values[min(first + l, count - 1)];
        factor(diagonal, off_diagonal, n, (const doubles *)some, smallest, down, up, twist);
        follow(off_diagonal, n, twist, down, up, (doubles *)squares);
        const double *lanes = (const double *)down;
        for (int64_t l = 0; l < min(LANES, count - first); l++) {
            double scale = 1.0 / __builtin_sqrt(squares[l]), *vector = vectors + (first + l) * stride;
            for (int64_t i = 0; i < n; i++) vector[i] = lanes[i * LANES + l] * scale;
        }
    }
    free(down);
    return true;
}

EXPORT double largest_overlap(const double *vectors, int64_t n, int64_t count, int64_t stride,
                              const double *values, double reach) {
    double largest = 0;
    for (int64_t i = 0; i < count; i++) {
        const double *one = vectors + i * stride;
        for (int64_t j = i + 1; j < count && values[i] - values[j] <= reach; j++) {
            const double *other = vectors + j * stride;
            doubles sums[4][PARTS] = {0};
            int64_t k = 0;
            for (; k + 4 * LANES <= n; k += 4 * LANES)
                UNROLLED
                for (int l = 0; l < 4 * LANES; l += PART)
                    sums[l / LANES][l % LANES / PART] +=
                        *(const doubles *)(one + k + l) * *(const doubles *)(other + k + l);
            for (int p = 0; p < PARTS; p++)
                sums[0][p] = (sums[0][p] + sums[1][p]) + (sums[2][p] + sums[3][p]);
            double sum = sum_of(sums[0]);
            for (; k < n; k++) sum += one[k] * other[k];
            // Of NaN nothing is larger, nor smaller.
            if (!(__builtin_fabs(sum) <= largest)) largest = __builtin_fabs(sum);
        }
    }
    return largest;
}
