// Symmetric matrices made tridiagonal by reflections, and vectors brought back.
//
// As LAPACK's dsytrd and dormtr do it: A = Q·T·Qᵀ with Q = H₀·H₁·…, Hⱼ = I − τⱼ·vⱼ·vⱼᵀ. Of the
// symmetric matrix row j holds column j from the diagonal on, and in the end vⱼ from j + 2 on.
// Rows are a whole, odd number of cache lines, and their ends 0: every loop is one over vectors.
#include <stdlib.h>

#include "algebra.h"

// Reflections that are put together before the rest of the matrix is brought up to date, and as many
// as are brought back at a time; columns that are multiplied at a time.
enum { PANEL = 16, BACK = 48, GROUP = 4 };

static inline doubles at(const double *from) { return *(const doubles *)from; }

static inline double total(doubles x) {
    double sum = 0;
    UNROLLED
    for (int l = 0; l < PART; l++) sum += x[l];
    return sum;
}

// Σ xᵣyᵣ of rows from `first`, a whole number of vectors in, to `end`.
static double inner(const double *x, const double *y, int64_t first, int64_t end) {
    doubles sum = {0};
    for (int64_t r = first; r < end; r += PART) sum += at(x + r) * at(y + r);
    return total(sum);
}

// Write xᵀP of `count` columns of P, `ahead` entries apart; count is a multiple of GROUP.
static void inners(const double *columns, int64_t ahead, int64_t count, const double *x,
                   int64_t first, int64_t end, double *results) {
    for (int64_t c = 0; c < count; c += GROUP) {
        doubles sums[GROUP] = {0};
        for (int64_t r = first; r < end; r += PART) {
            doubles here = at(x + r);
            UNROLLED
            for (int k = 0; k < GROUP; k++) sums[k] += at(columns + (c + k) * ahead + r) * here;
        }
        UNROLLED
        for (int k = 0; k < GROUP; k++) results[c + k] = total(sums[k]);
    }
}

// Add P·f to y.
static void add_columns(const double *columns, int64_t ahead, int64_t count, const double *factors,
                        int64_t first, int64_t end, double *y) {
    for (int64_t c = 0; c < count; c += GROUP)
        for (int64_t r = first; r < end; r += PART) {
            doubles sum = at(y + r);
            UNROLLED
            for (int k = 0; k < GROUP; k++)
                sum += at(columns + (c + k) * ahead + r) * all(factors[c + k]);
            *(doubles *)(y + r) = sum;
        }
}

static inline doubles where(integers mask, doubles x) { return (doubles)(mask & (integers)x); }

// Write A·x for the rows and columns from `first`, a multiple of GROUP, to `end`.
//
// A column's entries under the diagonal are read once, for its row as well.
static void times(const double *matrix, int64_t length, int64_t first, int64_t end,
                  const double *x, double *y) {
    int64_t start = first / PART * PART;
    memset(y + start, 0, (end - start + PART) * sizeof *y);
    integers rows = {0};
    for (int l = 0; l < PART; l++) rows[l] = l;
    for (int64_t c = first; c < end; c += GROUP) {
        const double *columns = matrix + c * length;
        doubles factors[GROUP], sums[GROUP] = {0};
        UNROLLED
        for (int k = 0; k < GROUP; k++) factors[k] = all(x[c + k]);
        int64_t r = c / PART * PART;
        for (; r < c + GROUP; r += PART) {
            doubles sum = at(y + r), here = at(x + r);
            UNROLLED
            for (int k = 0; k < GROUP; k++) {
                doubles entries = at(columns + k * length + r);
                integers under = rows + (r - c - k);
                sum += where(under >= 0, entries) * factors[k];
                sums[k] += where(under > 0, entries) * here;
            }
            *(doubles *)(y + r) = sum;
        }
        for (; r < end; r += PART) {
            doubles sum = at(y + r), here = at(x + r);
            UNROLLED
            for (int k = 0; k < GROUP; k++) {
                doubles entries = at(columns + k * length + r);
                sum += entries * factors[k];
                sums[k] += entries * here;
            }
            *(doubles *)(y + r) = sum;
        }
        UNROLLED
        for (int k = 0; k < GROUP; k++) y[c + k] += total(sums[k]);
    }
}

// Turn what is in v from `next` on into a reflector with a 1 there; return τ, and what is left there.
static double reflector(double *v, int64_t next, int64_t end, double *left) {
    double head = v[next];
    v[next] = 0;
    int64_t first = next / PART * PART;
    double rest = inner(v, v, first, end);
    *left = head;
    v[next] = 1;
    if (rest == 0) return 0;
    double beta = -__builtin_copysign(__builtin_sqrt(head * head + rest), head);
    double scale = 1 / (head - beta);
    for (int64_t r = next + 1; r < end; r++) v[r] *= scale;
    *left = beta;
    return (beta - head) / beta;
}

// Reduce `count` columns from `from` on. `pairs` gets v₀, w₀, v₁, w₁ … and `negated` −w₀, −v₀, …:
// the rest of the matrix becomes A − Σ vᵢwᵢᵀ + wᵢvᵢᵀ.
static void reduce_panel(double *matrix, int64_t n, int64_t length, int64_t from, int64_t count,
                         double *diagonal, double *off_diagonal, double *scales, double *pairs,
                         double *negated, double *product) {
    memset(pairs, 0, 2 * PANEL * length * sizeof *pairs);
    memset(negated, 0, 2 * PANEL * length * sizeof *negated);
    double factors[2 * PANEL + GROUP], inside[2 * PANEL + GROUP];
    for (int64_t i = 0; i < count; i++) {
        int64_t j = from + i, before = (2 * i + GROUP - 1) / GROUP * GROUP;
        double *column = matrix + j * length;
        for (int64_t k = 0; k < before; k++) factors[k] = negated[k * length + j];
        add_columns(pairs, length, before, factors, j / PART * PART, n, column);
        diagonal[j] = column[j];
        if (j + 1 == n) break;
        double *v = pairs + 2 * i * length, *w = v + length;
        memcpy(v + j + 1, column + j + 1, (n - j - 1) * sizeof *v);
        scales[j] = reflector(v, j + 1, n, off_diagonal + j);
        memcpy(column + j + 1, v + j + 1, (n - j - 1) * sizeof *v);
        int64_t first = (j + 1) / GROUP * GROUP, start = first / PART * PART;
        times(matrix, length, first, n, v, product);
        // What the panel's own columns would have taken away from the matrix by now.
        inners(negated, length, before, v, start, n, inside);
        add_columns(pairs, length, before, inside, start, n, product);
        for (int64_t r = start; r <= j; r++) product[r] = 0;
        double half = -0.5 * scales[j] * scales[j] * inner(product, v, start, n);
        for (int64_t r = j + 1; r < n; r++) w[r] = scales[j] * product[r] + half * v[r];
        double *minus = negated + 2 * i * length;
        for (int64_t r = j + 1; r < n; r++) minus[r] = -w[r], minus[length + r] = -v[r];
    }
}

// `form` has room for n + GROUP rows of `length` entries, an odd multiple of 8 and at least n + 8, and
// begins at a multiple of 64 bytes. Return false if there is no memory.
EXPORT bool make_tridiagonal(const double *matrix, int64_t n, double *form, int64_t length,
                             double *diagonal, double *off_diagonal, double *scales) {
    double *pairs = aligned_alloc(64, (4 * PANEL + 1) * length * sizeof *pairs);
    if (!pairs) return false;
    double *negated = pairs + 2 * PANEL * length, *product = negated + 2 * PANEL * length;
    for (int64_t j = 0; j < n; j++) {
        memcpy(form + j * (length + 1), matrix + j * (n + 1), (n - j) * sizeof *form);
        memset(form + j * length, 0, j * sizeof *form);
        memset(form + j * length + n, 0, (length - n) * sizeof *form);
    }
    memset(form + n * length, 0, GROUP * length * sizeof *form);
    bool done = true;
    for (int64_t from = 0; from < n && done; from += PANEL) {
        int64_t count = min(PANEL, n - from), next = from + count, rest = n - next;
        reduce_panel(form, n, length, from, count, diagonal, off_diagonal, scales, pairs, negated,
                     product);
        Matrix left = {pairs + next, 1, length, true}, right = {negated + next, length, 1, true};
        Matrix corner = {form + next * (length + 1), length, 1, true};
        if (rest)
            done = multiply_in_doubles(&left, &right, &corner, rest, 2 * count, rest, true, true);
    }
    free(pairs);
    return done;
}

// Tᵀ of the upper triangular T of H₀·H₁ … = I − V·T·Vᵀ, from VᵀV and the reflections' τ; negated.
static void join_reflections(const double *squares, const double *scales, int64_t count,
                             double *joined) {
    memset(joined, 0, BACK * BACK * sizeof *joined);
    for (int64_t k = 0; k < count; k++) {
        double *row = joined + k * BACK;
        for (int64_t l = 0; l < k; l++) {
            double factor = -scales[k] * squares[l * BACK + k];
            for (int64_t i = 0; i <= l; i++) row[i] += factor * joined[l * BACK + i];
        }
        row[k] = -scales[k];
    }
}

// Return false if there is no memory.
EXPORT bool back_transform(const double *form, int64_t length, int64_t n, const double *scales,
                           double *vectors, int64_t count, int64_t down) {
    size_t entries = BACK * (2 * length + 2 * BACK + count);
    double *reflectors = aligned_alloc(64, entries * sizeof *reflectors);
    if (!reflectors) return false;
    double *squares = reflectors + BACK * length, *joined = squares + BACK * BACK;
    double *combined = joined + BACK * BACK, *inside = combined + BACK * length;
    bool done = true;
    for (int64_t from = n > 1 ? (n - 2) / BACK * BACK : -1; from >= 0 && done; from -= BACK) {
        int64_t some = min(BACK, n - 1 - from), rows = n - from - 1;
        memset(reflectors, 0, BACK * length * sizeof *reflectors);
        for (int64_t k = 0; k < some; k++) {
            double *v = reflectors + k * length;
            v[k] = 1;
            int64_t tail = from + k + 2;
            if (tail < n)
                memcpy(v + k + 1, form + (from + k) * length + tail, (n - tail) * sizeof *v);
        }
        Matrix across = {reflectors, length, 1, true}, upright = {reflectors, 1, length, true};
        Matrix inner_products = {squares, BACK, 1, true}, turned = {joined, BACK, 1, true};
        Matrix rest = {vectors + from + 1, down, 1, true}, first = {inside, BACK, 1, true};
        Matrix second = {combined, length, 1, true};
        done = multiply_in_doubles(&across, &upright, &inner_products, some, rows, some, false, true);
        join_reflections(squares, scales + from, some, joined);
        // zᵀ becomes zᵀ − (zᵀ·V)·(Tᵀ·Vᵀ).
        done = done && multiply_in_doubles(&turned, &across, &second, some, some, rows, false, false) &&
               multiply_in_doubles(&rest, &upright, &first, count, rows, some, false, false) &&
               multiply_in_doubles(&first, &second, &rest, count, some, rows, true, false);
    }
    free(reflectors);
    return done;
}
