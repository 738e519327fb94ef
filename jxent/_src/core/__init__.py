"""What every layer uses; it knows no loss."""
