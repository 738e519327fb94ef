"""Classes and examples that are split over devices."""
