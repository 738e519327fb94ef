"""What goes in, checked before anything is computed."""
