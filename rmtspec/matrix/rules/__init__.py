"""Rules for the rank besides BEMA's: thresholds, resampling, shares; each returns a count."""
