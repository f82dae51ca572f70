// What the kernels of linear algebra share. Their sums are in no fixed order: they depend on the
// instruction set, as those of any BLAS do, but not on the number of threads.
#ifndef AFLUENTE_ALGEBRA_H
#define AFLUENTE_ALGEBRA_H

#include "kernels.h"

FUSE_PRODUCTS

// Entries `across` apart in a row, rows `down` apart.
typedef struct {
    void *entries;
    int64_t down, across;
    bool doubles;
} Matrix;

// Write the product of `rows` x `depth` and `depth` x `columns` entries, or add it to what is in the
// result (whose entries are 1 across); return false if there is no memory. With `upper`, of a
// symmetric product, what is below the diagonal may be anything.
bool multiply_in_doubles(const Matrix *left, const Matrix *right, const Matrix *result,
                         int64_t rows, int64_t depth, int64_t columns, bool add, bool upper);

#endif
