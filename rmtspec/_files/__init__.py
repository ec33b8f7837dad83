"""Files: written so that a failure leaves what was there, read whatever they turn out to be."""
