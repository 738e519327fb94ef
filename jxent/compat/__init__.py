"""Other libraries' losses, under their names and with their meaning, with jxent's digits.

`jxent.compat.optax` has those of optax. `import jxent` imports nothing of it.
"""
