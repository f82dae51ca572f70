// Which sources a build was made of.
#include "kernels.h"

EXPORT const char *sources(void) { return SOURCES; }
