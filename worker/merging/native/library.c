// The digest of the sources that this library was compiled from.
#include "kernels.h"

EXPORT const char *sources(void) { return SOURCES; }
