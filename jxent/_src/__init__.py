"""The private parts, a layer to each folder: imports point down.

api, run, platforms, projection, loss_fns, numerics, checks, sharding, core.
"""
