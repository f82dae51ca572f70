// What the eigenvalues of one and of several symmetric tridiagonal matrices share.
#ifndef AFLUENTE_VALUES_H
#define AFLUENTE_VALUES_H

#include "kernels.h"

enum { MATRICES = 4 };

typedef double doubles4 __attribute__((vector_size(8 * MATRICES), aligned(8)));
typedef int64_t longs4 __attribute__((vector_size(8 * MATRICES), aligned(8)));

static inline doubles4 either(longs4 mask, doubles4 yes, doubles4 no) {
    return (doubles4)((mask & (longs4)yes) | (~mask & (longs4)no));
}

// Sweep from row `last` to `first`, at least SHORT rows above it, with each of MATRICES shifts in
// turn. Squares beside the diagonal that are under `floor`, which is not 0, are taken for it.
void chase(double *diagonal, double *squares, int64_t first, int64_t last, const double *shifts,
           double floor);

enum { SHORT = 16 };

#endif
