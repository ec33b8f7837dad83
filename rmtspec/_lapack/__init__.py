"""Eigenvalues of symmetric matrices, by the fastest LAPACK that is here.

>>> import numpy as np
>>> eigvalsh(np.diag([3.0, 1.0, 2.0]))
array([1., 2., 3.])
"""

from rmtspec._lapack.symmetric import eigvalsh as eigvalsh
from rmtspec._lapack.symmetric import in_two_stages as in_two_stages
from rmtspec._lapack.symmetric import used as used
