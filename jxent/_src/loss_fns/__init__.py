"""The losses, and the one rule that differentiates them."""
