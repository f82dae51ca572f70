"""One BLAS thread for numpy and scipy, as the engine asks of torch.

Tensors are merged in parallel, each on one thread: more would only wait for each other, and the
order of a sum must not depend on the number of cores.
"""

from scipy.linalg import cython_lapack
from threadpoolctl import threadpool_limits

# The limit holds for the libraries that are loaded by now: numpy's, and scipy's.
threadpool_limits(1, user_api="blas")

__all__ = ["cython_lapack"]
