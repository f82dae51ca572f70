// Square matrices: the upper triangle copied into the lower one.
#include "kernels.h"

// Rows and columns that are copied at a time: a tile and its transpose stay in the first cache.
enum { TILE = 16 };

#define MIRROR(name, type)                                                                         \
    EXPORT void name(type *matrix, int64_t n) {                                                    \
        for (int64_t top = 0; top < n; top += TILE)                                                \
            for (int64_t left = top; left < n; left += TILE)                                       \
                for (int64_t i = top; i < least(top + TILE, n); i++)                               \
                    for (int64_t j = most(left, i + 1); j < least(left + TILE, n); j++)            \
                        matrix[j * n + i] = matrix[i * n + j];                                     \
    }

MIRROR(mirror_floats, float)
MIRROR(mirror_doubles, double)
