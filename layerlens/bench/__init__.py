"""What decoding, a trace and the statistics of a run cost, as reports that can be written as JSON."""
