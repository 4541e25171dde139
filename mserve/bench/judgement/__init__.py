"""What the numbers prove: percentiles, objectives, searches, comparisons."""
