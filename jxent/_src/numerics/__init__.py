"""The mathematics of a row of logits, accurate to the last digits."""
