// Products of matrices of float32 or float64, in either precision.
#include <stdlib.h>

#include "algebra.h"

// A tile of the result has ROWS rows of VECTORS vectors: as many as registers hold beside a line of
// the right factor and an entry of the left one.
#if defined __AVX512F__ || defined __aarch64__
enum { ROWS = 8, VECTORS = 3 };
#elif defined __AVX__
enum { ROWS = 6, VECTORS = 2 };
#else
enum { ROWS = 4, VECTORS = 2 };
#endif

// How much of the depth is summed at a time: SHALLOW bytes of it, so that a panel of the right factor
// stays in the first cache. Where sums lose digits when they are put down, in a result of lower
// precision, it is so much that hardly any are twice.
enum { SHALLOW = 192 * 8, DEEP = 1536 };

// Rows of the left factor that are copied at a time.
enum { HEIGHT = 48 };

// Rows and columns that are mirrored at a time: a tile and its transpose fit into the L1 cache.
enum { TILE = 16 };

#define REAL float
#define OF(name) name##_in_floats
#include "products_of.h"
#undef REAL
#undef OF
#define REAL double
#define OF(name) name##_in_doubles
#include "products_of.h"

EXPORT bool multiply(void *left, int64_t left_down, int64_t left_across, bool left_doubles,
                     void *right, int64_t right_down, int64_t right_across, bool right_doubles,
                     void *result, int64_t result_down, int64_t result_across,
                     bool result_doubles, int64_t rows, int64_t depth, int64_t columns,
                     bool in_doubles, bool add, bool upper) {
    Matrix a = {left, left_down, left_across, left_doubles};
    Matrix b = {right, right_down, right_across, right_doubles};
    Matrix c = {result, result_down, result_across, result_doubles};
    return in_doubles ? multiply_in_doubles(&a, &b, &c, rows, depth, columns, add, upper)
                      : multiply_in_floats(&a, &b, &c, rows, depth, columns, add, upper);
}
