"""Nulls, audits and rivals, one module for each kind of task; each registers its functions."""
