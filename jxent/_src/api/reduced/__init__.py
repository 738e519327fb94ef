"""The weighted and reduced scalar: `jxent.losses.*`."""
