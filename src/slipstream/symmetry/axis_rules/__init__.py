"""What each operator family does to axes: one module per family, one small function per rule.

A rule sees a `Call`, ties, regroups or pins axes of its arguments, and returns the axes of the
result (a list of them where the operator returns a list or a tuple). It must only promise what
holds for *every* permutation of the atoms that are left free.
"""
