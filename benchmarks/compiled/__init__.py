"""Programs compiled for chips that are not here, and what they read, write and hold."""
