"""Kernel for the sums of powers of the entries of many small matrices."""

import numpy as np

from rmtspec._checks import Float64Array
from rmtspec._kernels._decorator import reordering_kernel


@reordering_kernel
def sums_of_stack(
    matrices: Float64Array, rows: Float64Array, columns: Float64Array, others: Float64Array
) -> None:
    """Write the sums of squares of rows and columns, and in `others` two more numbers a matrix.

    Of matrices (count, n, p) these are ``rows`` (count, n), ``columns`` (count, p), and the largest
    square and the sum of fourth powers (count, 2); nan or inf where an entry is.
    """
    for k in range(matrices.shape[0]):
        matrix, of_columns = matrices[k], columns[k]
        of_columns[:] = 0.0
        largest = fourths = 0.0
        for i in range(matrix.shape[0]):
            row = matrix[i]
            total = 0.0
            for j in range(len(row)):
                square = row[j] * row[j]
                of_columns[j] += square
                total += square
                fourths += square * square
                largest = max(largest, square)
            rows[k, i] = total
        others[k, 0] = largest if fourths < np.inf else fourths  # max passes over nan
        others[k, 1] = fourths
