"""Compiled loops over a block's entries and matrices: one reading where array operations take many.

Written in C (`native/`), compiled when the project is installed, and called on the calling thread
without the interpreter's lock. What they add up in float32 is added in the order of the experts,
entry by entry, and nothing is reordered: results depend neither on where blocks begin nor on the
processor's instruction set. Products of matrices and tridiagonal forms depend on that too (0014).
"""
