// Sweeps of the root-free QL iteration over one symmetric tridiagonal matrix, four at a time.
//
// A sweep's steps wait for each other, but the next sweep need not wait for its end: each follows two
// rows behind the one before it, a lane of a vector each, and takes the rows as that one leaves them.
#include "values.h"

// A lane's state, as in a sweep of its own.
typedef struct {
    doubles4 shift, p, sine, cosine, gamma;
    // What the row below is now, which is the next lane's row in the next step.
    doubles4 settled, beside;
} Sweeps;

static inline doubles4 moved_on(double first, doubles4 lanes) {
    return (doubles4){first, lanes[0], lanes[1], lanes[2]};
}

// One step of all sweeps, the first of them at this row; with `edges` some of them are not yet or no
// longer in the block.
static inline __attribute__((always_inline)) void step(Sweeps *at, int64_t row, double entry,
                                                       double beside, int64_t first, int64_t last,
                                                       double floor, bool edges) {
    doubles4 alpha = moved_on(entry, at->settled), square = moved_on(beside, at->beside), lowest = {0};
    lowest += floor;
    square = either(square < lowest, lowest, square);
    doubles4 p = at->p, sine = at->sine, cosine = at->cosine, one = {1, 1, 1, 1}, zero = {0};
    longs4 begins = {0}, over = {0};
    if (edges) {
        longs4 here = {row, row + 2, row + 4, row + 6};
        begins = here == last;
        over = here < first;
        alpha = either(over, zero, alpha);
        square = either(begins | over, zero, square);
        p = either(begins, one, p);
        sine = either(begins, zero, sine);
        cosine = either(begins, one, cosine);
    }
    doubles4 r = p + square, c = p / r, s = square / r, inverse = r / p;
    if (edges) c = either(over, one, c), s = either(over, zero, s);
    doubles4 g = c * (alpha - at->shift) - s * at->gamma;
    doubles4 following = g * g * inverse;
    at->beside = sine * r;
    at->settled = at->gamma + (alpha - g);
    at->p = either(c == 0, cosine * square, following);
    at->sine = s;
    at->cosine = c;
    at->gamma = g;
}

void chase(double *diagonal, double *squares, int64_t first, int64_t last, const double *shifts,
           double floor) {
    Sweeps at = {.shift = *(const doubles4 *)shifts};
    int64_t row = last;
    for (; row > last - 7; row--)
        step(&at, row, diagonal[row], row == last ? 0 : squares[row], first, last, floor, true);
    for (; row >= first; row--) {
        step(&at, row, diagonal[row], squares[row], first, last, floor, false);
        diagonal[row + 7] = at.settled[3];
        squares[row + 7] = at.beside[3];
    }
    for (; row >= first - 7; row--) {
        step(&at, row, 0, 0, first, last, floor, true);
        diagonal[row + 7] = at.settled[3];
        squares[row + 7] = at.beside[3];
    }
}
