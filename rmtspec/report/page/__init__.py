"""The HTML page of a report: one file that asks the network for nothing."""
