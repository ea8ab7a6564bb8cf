"""How programs become machine code, on a CPU by Numba and on a GPU by Triton."""
