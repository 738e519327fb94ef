"""The losses of other libraries, under their names: `jxent.compat.*`."""
