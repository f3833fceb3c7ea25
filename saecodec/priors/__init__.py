"""Priors: the probability models of codes. Each is one module; `registry` finds them by name."""
