"""One loss per example, per class for sigmoid: `jxent.*`."""
