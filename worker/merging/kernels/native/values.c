// Eigenvalues of several symmetric tridiagonal matrices at once, one in each lane of a vector.
//
// The root-free QL iteration, as in LAPACK's dsterf (Pal, Walker, Kahan; Parlett 1998, 8.15): each
// step waits for the one before it, a division and four more operations, so that one matrix keeps a
// processor waiting. Lanes sweep together over the rows that any of them has left; a lane's rows
// from `first` to `last` are those of its current block.
#include <stdlib.h>

#include "values.h"

// A matrix's squares beside the diagonal that are as good as 0: beside their neighbours, or beside the
// largest entry (as 2⁻⁷⁵ of it: less than rounding has left of any Gram matrix's smallest values).
#define NEGLIGIBLE 0x1p-106
#define NOTHING 0x1p-150

// What is so small that it can still be told from 0, and how often four sweeps may find no value of a
// block.
#define LEAST 1e-290
enum { PATIENCE = 10, FEW = 2 };

static inline doubles4 size(doubles4 x) {
    longs4 sign = {INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN};
    return (doubles4)(~sign & (longs4)x);
}

// Say whether what is beside two neighbours is as good as 0; its square is told.
static inline bool is_negligible(double square, double one, double other, double nothing) {
    return square <= NEGLIGIBLE * __builtin_fabs(one * other) + nothing;
}

typedef struct {
    doubles4 *diagonal, *squares;
    doubles4 nothing;
    int64_t n;
    longs4 first, last;
} Lanes;

// Where a lane's block ends that begins at `from`.
static int64_t block_end(const Lanes *lanes, int lane, int64_t from) {
    int64_t i = from;
    for (; i < lanes->n - 1; i++) {
        double here = lanes->diagonal[i][lane], next = lanes->diagonal[i + 1][lane];
        if (is_negligible(lanes->squares[i][lane], here, next, lanes->nothing[lane])) break;
    }
    return i;
}

// Go on to the next block that is more than one entry long; say whether any lane has one.
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
    doubles4 shift = {0}, sine = {0}, cosine = {0}, gamma = {0};
    int64_t top = lanes->n, bottom = 0;
    for (int lane = 0; lane < MATRICES; lane++) {
        int64_t l = lanes->first[lane], m = lanes->last[lane];
        if (l >= m) continue;
        top = least(top, l);
        bottom = most(bottom, m);
        double root = __builtin_sqrt(lanes->squares[l][lane]);
        double half = (lanes->diagonal[l + 1][lane] - lanes->diagonal[l][lane]) / (2 * root);
        double radius = __builtin_sqrt(half * half + 1);
        shift[lane] = lanes->diagonal[l][lane] - root / (half + __builtin_copysign(radius, half));
        gamma[lane] = lanes->diagonal[m][lane] - shift[lane];
    }
    cosine += 1;
    doubles4 p = gamma * gamma, below = {0}, nothing = lanes->nothing;
    longs4 first = lanes->first, last = lanes->last, end = last;
    for (int lane = 0; lane < MATRICES; lane++)
        if (first[lane] < last[lane] && last[lane] + 1 < lanes->n)
            below[lane] = lanes->diagonal[last[lane] + 1][lane];
    for (int64_t i = bottom - 1; i >= top; i--) {
        longs4 here = {0};
        here += i;
        longs4 active = (here >= first) & (here < last);
        doubles4 square = lanes->squares[i], alpha = lanes->diagonal[i];
        doubles4 r = p + square, old_cosine = cosine, old_gamma = gamma;
        // Of what was the row below, all but its neighbour above is known now.
        doubles4 beside = sine * r;
        doubles4 c = p / r, s = square / r, inverse = r / p;
        doubles4 g = c * (alpha - shift) - s * old_gamma;
        doubles4 settled = old_gamma + (alpha - g);
        doubles4 following = g * g * inverse;
        following = either(c == 0, old_cosine * square, following);
        longs4 split = beside <= NEGLIGIBLE * size(settled * below) + nothing;
        end = (longs4)either(active & split, (doubles4)(here + 1), (doubles4)end);
        lanes->squares[i + 1] = either(active, beside, lanes->squares[i + 1]);
        lanes->diagonal[i + 1] = either(active, settled, lanes->diagonal[i + 1]);
        below = either(active, settled, below);
        p = either(active, following, p);
        sine = either(active, s, sine);
        cosine = either(active, c, cosine);
        gamma = either(active, g, gamma);
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

// Find what is in the lanes' matrices; return false if too many sweeps were not enough.
static bool solve(Lanes *lanes) {
    for (int64_t sweeps = 30 * lanes->n; next_blocks(lanes); sweeps--) {
        if (sweeps <= 0) return false;
        sweep(lanes);
    }
    return true;
}

// Where a block ends that begins at `from`: before something negligible.
static int64_t end_of(const double *diagonal, const double *squares, int64_t n, double nothing,
                      int64_t from) {
    int64_t i = from;
    while (i < n - 1 && !is_negligible(squares[i], diagonal[i], diagonal[i + 1], nothing)) i++;
    return i;
}

// Write the eigenvalues of the first MATRICES rows of a block.
static void leading_values(const double *diagonal, const double *squares, double nothing,
                           double *values) {
    doubles4 rows[2 * MATRICES] = {0};
    Lanes lanes = {rows, rows + MATRICES, {0}, MATRICES, {0}, {0}};
    lanes.nothing += nothing;
    lanes.first += MATRICES;
    lanes.last += MATRICES;
    for (int i = 0; i < MATRICES; i++) {
        rows[i][0] = diagonal[i];
        if (i < MATRICES - 1) lanes.squares[i][0] = squares[i];
    }
    lanes.first[0] = 0;
    lanes.last[0] = block_end(&lanes, 0, 0);
    solve(&lanes);
    for (int i = 0; i < MATRICES; i++) values[i] = rows[i][0];
}

// Find most eigenvalues of one matrix: of long blocks, several at a time. What is left is for single
// sweeps, whose shifts are known to converge.
static void chase_all(double *diagonal, double *squares, int64_t n, double nothing) {
    double shifts[MATRICES];
    for (int64_t first = 0, tries = 0; first < n;) {
        int64_t last = end_of(diagonal, squares, n, nothing, first);
        if (last - first < SHORT || tries == PATIENCE) {
            first = last + 1;
            tries = 0;
            continue;
        }
        leading_values(diagonal + first, squares + first, nothing, shifts);
        chase(diagonal, squares, first, last, shifts, nothing);
        tries++;
    }
}

// Find most values of a lane's matrix, given room for 2n entries.
static void chase_lane(Lanes *lanes, int lane, double *room) {
    int64_t n = lanes->n;
    double *diagonal = room, *squares = room + n;
    for (int64_t i = 0; i < n; i++) {
        diagonal[i] = lanes->diagonal[i][lane];
        squares[i] = lanes->squares[i][lane];
    }
    chase_all(diagonal, squares, n, lanes->nothing[lane]);
    for (int64_t i = 0; i < n; i++) {
        lanes->diagonal[i][lane] = diagonal[i];
        lanes->squares[i][lane] = squares[i];
    }
    lanes->last[lane] = block_end(lanes, lane, 0);
}

// Write the n eigenvalues of each of up to 4 matrices, in no order, a row each; `diagonals` and
// `besides` hold n entries a row, of which the last beside is nothing. Return 1 if there is no memory,
// 2 if there is no solution (NaN, infinity).
EXPORT int32_t tridiagonal_values(const double *const *diagonals, const double *const *besides,
                                  int64_t n, int64_t count, double *values) {
    if (n == 0) return 0;
    doubles4 *room = aligned_alloc(64, (3 * n + 2) * sizeof *room);
    if (!room) return 1;
    Lanes lanes = {room, room + n, {0}, n, {0}, {0}};
    bool solved = true;
    for (int lane = 0; lane < MATRICES; lane++) {
        // Lanes to spare have nothing to do.
        const double *diagonal = diagonals[least(lane, count - 1)];
        const double *beside = besides[least(lane, count - 1)];
        bool used = lane < count;
        // The values are found from the first row on: quickly if the smaller entries are there.
        bool turned = __builtin_fabs(diagonal[n - 1]) < __builtin_fabs(diagonal[0]);
        double largest = 0;
        for (int64_t i = 0; i < n; i++) {
            double entry = diagonal[turned ? n - 1 - i : i];
            double next = i == n - 1 ? 0 : beside[turned ? n - 2 - i : i];
            solved &= __builtin_isfinite(entry) && __builtin_isfinite(next);
            lanes.diagonal[i][lane] = entry;
            lanes.squares[i][lane] = used ? next * next : 0;
            largest = __builtin_fmax(largest, __builtin_fmax(__builtin_fabs(entry), __builtin_fabs(next)));
        }
        solved &= __builtin_isfinite(largest * largest);
        lanes.nothing[lane] = largest * largest * NOTHING;
        lanes.first[lane] = used ? 0 : n;
        lanes.last[lane] = used ? block_end(&lanes, lane, 0) : n;
    }
    // One matrix after the other: of more than these, all together are as quick.
    if (solved && count <= FEW)
        for (int lane = 0; lane < count; lane++)
            if (lanes.nothing[lane] > LEAST) chase_lane(&lanes, lane, (double *)(room + 2 * n));
    solved = solved && solve(&lanes);
    for (int64_t lane = 0; lane < count; lane++)
        for (int64_t i = 0; i < n; i++) values[lane * n + i] = lanes.diagonal[i][lane];
    free(room);
    return solved ? 0 : 2;
}
